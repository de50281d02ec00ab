"""Early exits: who leaves where and with what, on whatever network; thresholds; what is refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.exits import rows
from lissom.rewrite.graph.digest import model_digest
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime import exits as runtime
from lissom.rewrite.runtime.exits import EarlyExit

from .learning import notes
from .support import Fn
from .test_training_bad_input import said

torch.manual_seed(0)
X = torch.randn(60, 3, 8, 8)
Y = (X.mean((1, 2, 3)) > 0).long()
DATA = 'data train = sample("train", all)\ndata valid = sample("valid", all)\n'


class Net(nn.Module):
    """Two stages with a shortcut around the second, images [N, 3, 8, 8] to logits [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x + self.two(x)
        return self.head(x.mean((2, 3)))


def net() -> nn.Module:
    return Net().eval()


def accuracy(model: nn.Module, batches: Sequence[Any]) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def compiled(
    body: str,
    model: nn.Module | None = None,
    inputs: Any = None,
    rules: str = "",
    data: Any = None,
    **given: Any,
) -> lissom.Result:
    given = {"metrics": {"accuracy": accuracy}} | given
    inputs = (X[:4],) if inputs is None else inputs
    text = f"{rules}\npipeline p {{ {DATA} {body} }}"
    data = [(X, Y)] if data is None else data
    return lissom.compile(model or net(), text, inputs=inputs, data=data, **given)


AT_ONE = 'stage exits { once exit_head at "one" }'
TUNE = "recover tune { epochs = 0 }"


@pytest.fixture(scope="module")
def result() -> lissom.Result:
    return compiled(f"{AT_ONE} {TUNE}")


@pytest.fixture
def model(result: lissom.Result) -> EarlyExit:
    """One exit; half of the samples leave."""
    found = copy.deepcopy(result.model)
    assert isinstance(found, EarlyExit)
    _, (scores,) = found.everywhere(X)
    found.thresholds = [float(scores.median())]
    return found


def alone(model: EarlyExit, x: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample by itself."""
    found = [model(x[at : at + 1], return_exit=True) for at in range(len(x))]
    return torch.cat([y for y, _ in found]), torch.cat([e for _, e in found])


# -- running ---------------------------------------------------------------------------------------


def test_without_exits_the_network_gives_the_same_bits(model: EarlyExit) -> None:
    model.exits = False
    assert torch.equal(model(X), net()(X))
    assert model(X[:3], return_exit=True)[1].tolist() == [2, 2, 2]


def test_samples_leave_in_a_batch_as_they_do_alone(model: EarlyExit) -> None:
    found, exits = model(X, return_exit=True)
    wanted, also = alone(model, X)
    assert exits.tolist() == also.tolist()
    assert sorted(set(exits.tolist())) == [1, 2]
    torch.testing.assert_close(found, wanted)


def test_what_leaves_is_what_the_head_says_and_the_rest_is_the_network(model: EarlyExit) -> None:
    found, exits = model(X, return_exit=True)
    (early, late), (score,) = model.everywhere(X)
    assert torch.equal(exits == 1, score > model.thresholds[0])
    torch.testing.assert_close(score, early.softmax(1).amax(1))
    torch.testing.assert_close(found, torch.where((exits == 1)[:, None], early, late))
    torch.testing.assert_close(late, net()(X))


def test_nothing_behind_an_exit_runs_for_samples_that_left(model: EarlyExit) -> None:
    seen: list[int] = []
    model.bodies[1].register_forward_hook(lambda part, args, out: seen.append(len(args[0])))
    _, exits = model(X, return_exit=True)
    assert seen == [int((exits == 2).sum())]
    model.thresholds = [-1.0]
    model(X)
    assert len(seen) == 1


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_batches_of_any_size(model: EarlyExit, count: int, threshold: float) -> None:
    model.thresholds = [threshold]
    found, exits = model(X[:count], return_exit=True)
    assert found.shape == (count, 2)
    assert set(exits.tolist()) <= {1 if threshold < 0 else 2}


def test_a_sample_that_is_no_number_goes_on_to_the_end(model: EarlyExit) -> None:
    x = X[:5].clone()
    x[2] = torch.nan
    model.thresholds = [-1.0]
    found, exits = model(x, return_exit=True)
    assert exits.tolist() == [1, 1, 2, 1, 1]
    assert found.isnan().any(1).tolist() == [False, False, True, False, False]


def test_a_depth_is_taken_by_hand(model: EarlyExit) -> None:
    early, late = model.everywhere(X)[0]
    for depth, wanted in ((1, early), (2, late)):
        model.depth = depth
        found, exits = model(X, return_exit=True)
        assert torch.equal(found, wanted)
        assert set(exits.tolist()) == {depth}
    for odd in (0, 3, -1):
        with pytest.raises(ValueError, match="depth is 1 to 2"):
            model.depth = odd
    with pytest.raises(ValueError, match="1 exits have 1 thresholds"):
        model.thresholds = [0.5, 0.5]


def test_a_budget_takes_the_deepest_exit_that_fits(model: EarlyExit) -> None:
    with pytest.raises(ValueError, match=r"call `model.measure\(inputs\)` first"):
        model(X, budget=1.0)
    assert len(model.measure(X[:4], rounds=2)) == 2
    model.times = {4: [1.0, 2.0], 16: [3.0, 9.0]}
    cases = [(1, 0.5, 1), (4, 1.0, 1), (4, 2.5, 2), (5, 2.5, 1), (16, 9.0, 2), (60, 9.5, 2)]
    for count, budget, depth in cases:
        assert set(model(X[:count], budget=budget, return_exit=True)[1].tolist()) == {depth}


def test_copies_types_and_state_go_with_the_network(model: EarlyExit) -> None:
    double = copy.deepcopy(model).double()
    wide, exits = double(X.double(), return_exit=True)
    found, also = model(X, return_exit=True)
    assert exits.tolist() == also.tolist()
    torch.testing.assert_close(wide.float(), found)
    held = copy.deepcopy(model)
    held.load_state_dict(model.state_dict())
    assert torch.equal(held(X), found)


# -- networks --------------------------------------------------------------------------------------


class Sized(nn.Module):
    """Sizes are taken in front of the exit, and used behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, size = x.shape[0], x.size(2) * x.size(3)
        y = self.one(x).relu()
        return self.head(self.two(y).reshape(n, 4, size).reshape(n, -1))


class Later(nn.Module):
    """The input, a table of positions and a weight are read behind the exit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Linear(3, 2)
        self.table = nn.Parameter(torch.randn(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).relu()
        places = self.table * 2
        return self.head((self.two(y) + x * places).mean((2, 3)))


class Chunks(nn.Module):
    """A value with several parts lies around the exit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.one, self.two, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x).chunk(2, 1)
        return self.head((self.two(a) + b).mean((2, 3)))


class Named(nn.Module):
    """Two inputs, one with a default, and outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        y = self.net.one(x)
        y = y + self.net.two(y)
        return {"logits": self.net.head(y.mean((2, 3)))}


@pytest.mark.parametrize("kind", [Sized, Later, Chunks])
def test_what_lies_around_an_exit_goes_on_as_it_should(kind: Callable[[], nn.Module]) -> None:
    whole = kind().eval()
    found = compiled(f"{AT_ONE} {TUNE}", whole, inputs=(X[:5],)).model
    assert isinstance(found, EarlyExit)
    _, (scores,) = found.everywhere(X)
    for threshold in scores.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist():
        found.thresholds = [threshold]
        got, exits = found(X, return_exit=True)
        assert len(set(exits.tolist())) == 2
        torch.testing.assert_close(got, alone(found, X)[0])
    found.exits = False
    assert torch.equal(found(X), whole(X))


def test_outputs_keep_their_form_and_inputs_their_names() -> None:
    metric = {"accuracy": lambda model, batches: 0.5}
    body = 'stage exits { once exit_head at "net.one" } recover tune { epochs = 0 }'
    loss = lambda outputs, targets: nn.functional.cross_entropy(outputs["logits"], targets)  # noqa: E731
    result = compiled(body, Named().eval(), metrics=metric, loss=loss)
    found = result.model
    assert isinstance(found, EarlyExit)
    assert set(found(X)) == {"logits"}
    assert torch.equal(found(x=X)["logits"], found(X)["logits"])


class Reader(nn.Module):
    """A transformer over words, with a mask for what is missing at the end of a text."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.words, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)
        layers = (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
        self.blocks = nn.ModuleList(layers)

    def forward(self, ids: Tensor, missing: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=missing)
        keep = (~missing).unsqueeze(-1).float()
        return self.head((x * keep).sum(1) / keep.sum(1))


def test_texts_leave_a_transformer() -> None:
    """With its fused kernel a layer is opaque; without, masks go on with the texts they are of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        ids, missing = torch.randint(0, 50, (6, 9)), torch.zeros(6, 9, dtype=torch.bool)
        missing[1, 5:] = missing[4, 3:] = True
        stage = (
            'stage s { once exit_head_sequence at "blocks.0", exit_head_sequence at "blocks.1" }'
        )
        data = [((ids, missing), torch.randint(0, 3, (6,)))]
        found = compiled(f"{stage} {TUNE}", Reader().eval(), (ids, missing), data=data, metrics={})
        model = found.model
        assert isinstance(model, EarlyExit)
        _, scores = model.everywhere(ids, missing)
        model.thresholds = [float(score.detach().median()) for score in scores]
        got, exits = model(ids, missing, return_exit=True)
        assert len(set(exits.tolist())) > 1
        each = [model(ids[at : at + 1], missing[at : at + 1]) for at in range(len(ids))]
        torch.testing.assert_close(got, torch.cat(each))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def test_exits_one_behind_another() -> None:
    body = 'stage exits { once exit_head at "one"; once exit_head at "two" }' + TUNE
    found = compiled(body).model
    assert isinstance(found, EarlyExit)
    assert len(found.heads) == 2
    _, scores = found.everywhere(X)
    found.thresholds = [float(s.quantile(0.7)) for s in scores]
    got, exits = found(X, return_exit=True)
    assert sorted(set(exits.tolist())) == [1, 2, 3]
    wanted, also = alone(found, X)
    assert exits.tolist() == also.tolist()
    torch.testing.assert_close(got, wanted)
    first, second = (score > limit for score, limit in zip(scores, found.thresholds, strict=True))
    assert exits.tolist() == torch.where(first, 1, torch.where(second, 2, 3)).tolist()


RULE = """
approx rule leave() {
  match value y : f[N, C, H, W] at "*"
  let { classes = output_size(model) }
  rewrite {
    g = flatten(adaptive_avg_pool2d(y, output_size = 1), 1)
    e = linear(g, weight = kaiming(classes, C), bias = zeros(classes)) as head
    exit e when CONDITION
  }
  train { head }
  ensure { equal(outputs) within 0; needs recover }
}
"""


def probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1)


CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence(e) > LIMIT": lambda e: probabilities(e).amax(1),
    "entropy(e) < LIMIT": lambda e: torch.distributions.Categorical(logits=e).entropy(),
    "margin(e) >= LIMIT": lambda e: probabilities(e).sort(1).values.diff()[:, -1],
    "amax(softmax(e, 1), 1) > LIMIT": lambda e: probabilities(e).amax(1),
    "sum(e, dim = 1) <= LIMIT": lambda e: e.sum(1),
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions(condition: str) -> None:
    rule = RULE.replace("CONDITION", condition.replace("LIMIT", "0.5"))
    found = compiled(f'stage s {{ once leave at "one" }} {TUNE}', rules=rule).model
    assert isinstance(found, EarlyExit)
    (early, _), _ = found.everywhere(X)
    score = CONDITIONS[condition](early)
    found.thresholds = [float(score.median())]
    compare = {">": torch.gt, "<": torch.lt, ">=": torch.ge, "<=": torch.le}
    wanted = compare[condition.split()[-2]](score, found.thresholds[0])
    apart = (score - found.thresholds[0]).abs() > 1e-6  # both ways round
    assert torch.equal((found(X, return_exit=True)[1] == 1)[apart], wanted[apart])


@pytest.mark.parametrize(("share", "applied"), [("0.01%", False), ("5%", True)])
def test_a_head_has_costs_of_its_own(share: str, applied: bool) -> None:
    text = (Path(__file__).parent / "programs" / "early_exit.lissom").read_text()
    rule = text.replace('"layer2", "layer3"', '"one"').replace("5% * macs", f"{share} * macs")
    rule = rule.replace("int = 10", "int = 2")
    result = compiled(f"stage s {{ once early_exit }} {TUNE}", rules=rule)
    assert bool(result.applied) is applied


def test_patience_counts_exits_that_agree() -> None:
    rule = RULE.replace("CONDITION", "agreement(e) >= 2")
    body = f'stage s {{ once leave at "one"; once leave at "two" }} {TUNE}'
    found = compiled(body, rules=rule).model
    assert isinstance(found, EarlyExit)
    with torch.no_grad():
        for head in found.heads:
            for weight in head.parameters():
                weight.copy_(torch.randn(weight.shape))
    (first, second, _), scores = found.everywhere(X)
    same = first.argmax(1) == second.argmax(1)
    assert 0 < int(same.sum()) < len(X)
    assert scores[1].tolist() == (same.long() + 1).tolist()
    exits = found(X, return_exit=True)[1]
    assert exits.tolist() == torch.where(same, 2, 3).tolist()
    assert alone(found, X)[1].tolist() == exits.tolist()


def test_rules_behind_exits_rewrite_the_network_and_its_heads() -> None:
    folded = compiled(f"{AT_ONE} {TUNE} stage fold {{ fixpoint {{ fold_bn }} }}")
    found = folded.model
    assert [e.rule for e in folded.applied] == ["exit_head", "fold_bn"]
    assert isinstance(found, EarlyExit)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in found.modules())
    found.thresholds = [float(found.everywhere(X)[1][0].median())]
    torch.testing.assert_close(found(X), alone(found, X)[0])


def test_exits_and_integers() -> None:
    data = 'data calib = sample("train", 32)'
    quantized = """
      stage snap { once watch; calibrate calib; once int8_conv2d; once int8_linear }
    """
    fold = "budget drift(outputs) <= 20%\n stage fold { fixpoint { fold_bn } }"
    body = f"{data}\n {fold} {AT_ONE} {TUNE}"
    found = compiled(body + quantized).model
    assert isinstance(found, EarlyExit)
    kinds = {type(m).__name__ for part in (found.bodies, found.heads) for m in part.modules()}
    assert {"Int8Conv2d", "Int8Linear"} <= kinds
    found.thresholds = [float(found.everywhere(X)[1][0].median())]
    got, exits = found(X, return_exit=True)
    assert len(set(exits.tolist())) == 2
    torch.testing.assert_close(got, alone(found, X)[0])


# -- what is refused -------------------------------------------------------------------------------


def refused(model: nn.Module, at: str = "one", inputs: Any = None) -> Refused:
    result = compiled(f'stage s {{ once exit_head at "{at}" }} {TUNE}', model, inputs=inputs)
    assert not result.applied
    assert result.model is result.compiled.model
    (found,) = result.journal.of(Refused)
    return found


def parts(run: Callable[[Any, Tensor], Any]) -> nn.Module:
    torch.manual_seed(5)
    layers = {"one": nn.Conv2d(3, 4, 1), "two": nn.Conv2d(4, 4, 1), "head": nn.Linear(4, 2)}
    return Fn(run, **layers).eval()


def mixes(m: Any, x: Tensor) -> Tensor:
    y = m.one(x)
    return m.head((m.two(y) - y.mean(0, keepdim=True)).mean((2, 3)))


def folds(m: Any, x: Tensor) -> Tensor:
    rows = x.flatten(0, 1)
    y = m.two(m.one(rows.unflatten(0, (-1, 3)))).mean((2, 3))
    return m.head(y) + rows.mean((1, 2)).unflatten(0, (-1, 3))[:, :2]


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "two outputs": (lambda m, x: (m.head(m.two(m.one(x)).mean((2, 3))), x), "returns 2 values"),
    "samples that know each other": (mixes, "does not hold"),
    "another axis": (folds, "its first axis is not the batch"),
    "images": (lambda m, x: m.two(m.one(x)), "the exit gives"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_where_samples_cannot_leave_says_why(kind: str) -> None:
    run, why = REFUSED[kind]
    metric = {"metrics": {}}
    text = f"pipeline p {{ {DATA} {AT_ONE} {TUNE} }}"
    result = lissom.compile(parts(run), text, inputs=(X[:4],), data=[(X,)], **metric)
    assert not result.applied
    (found,) = result.journal.of(Refused)
    assert why in found.reason, found


def test_a_value_that_is_read_twice_has_one_exit_in_front_of_both() -> None:
    model = parts(lambda m, x: m.head((m.two(y := m.one(x)) + y).mean((2, 3))))
    found = compiled(f"{AT_ONE} {TUNE}", model).model
    assert isinstance(found, EarlyExit)
    assert [len(held) for held in found.by_row] == [1]


# -- thresholds ------------------------------------------------------------------------------------


def fitted(asked: str, at: str = AT_ONE) -> lissom.Result:
    train = "recover tune { epochs = 25; optimizer = Adam(lr = 0.02); batch = 16 }"
    return compiled(f"{at} {train} exit on valid until {asked}")


def test_thresholds_let_as_many_leave_as_the_condition_allows() -> None:
    result = fitted("accuracy >= 90%")
    found, said = result.model, result.exits
    assert isinstance(found, EarlyExit)
    assert said is not None
    assert accuracy(found, [(X, Y)]) >= 0.9
    assert said.metrics["accuracy"] == pytest.approx(accuracy(found, [(X, Y)]))
    exits = found(X, return_exit=True)[1]
    assert [row.share for row in said.rows] == [
        pytest.approx(float((exits == depth).float().mean())) for depth in (1, 2)
    ]
    scores = found.everywhere(X)[1][0].sort().values.tolist()
    best = [accuracy(_at(found, limit), [(X, Y)]) for limit in (-1.0, *scores)]
    most = max(at for at, value in enumerate(reversed(best)) if value >= 0.9)
    assert int((exits == 1).sum()) >= most - 1 - len(X) // 32  # as fine as the levels are


def _at(model: EarlyExit, limit: float) -> EarlyExit:
    found = copy.deepcopy(model)
    found.thresholds = [limit]
    return found


def test_thresholds_follow_a_budget_of_costs() -> None:
    result = fitted("macs(model) <= 60%")
    said = result.exits
    assert said is not None
    assert said.macs <= 0.6 * result.before.macs
    first, last = said.rows
    assert said.macs == pytest.approx(first.share * first.macs + last.share * last.macs)
    assert last.macs >= result.after.macs
    costs = [macs for macs, _ in said.frontier]
    gains = [value for _, value in said.frontier]
    assert costs == sorted(costs)
    assert gains == sorted(gains)


def test_the_trade_is_a_picture_and_in_the_certificate() -> None:
    result = fitted("accuracy >= 90%")
    picture = ElementTree.fromstring(result.exits_svg())
    kinds = [one.tag.partition("}")[2] for one in picture]
    assert kinds.count("polyline") == 1
    assert result.exits is not None
    assert kinds.count("circle") == len(result.exits.frontier) + 1
    (said_of,) = result.certificate["exits"]
    assert said_of["asked"] == "accuracy >= 90%"
    assert [row["name"] for row in said_of["rows"]] == ["exit 1", "output"]
    assert compiled(f"{AT_ONE} {TUNE}").exits_svg() == ""


@pytest.mark.parametrize("asked", ["drop(accuracy) <= 2%", "latency(model) <= 100000"])
def test_thresholds_hold_what_else_is_asked(asked: str) -> None:
    result = fitted(asked)
    assert result.exits is not None
    assert result.exits.asked == asked


def test_what_no_thresholds_hold_is_told_and_they_stay() -> None:
    result = fitted("accuracy >= 101%")
    assert isinstance(result.model, EarlyExit)
    assert result.model.thresholds == [pytest.approx(0.9)]
    assert result.exits is None
    assert "accuracy >= 101%" in notes(result, "F111")[0]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("exit on valid until accuracy >= 90%", "F112"),
        (f"{AT_ONE} {TUNE} exit on nowhere until accuracy >= 90%", "N001"),
        (
            f'data test = sample("test", all)\n{AT_ONE} {TUNE} exit on test until accuracy >= 1%',
            "F003",
        ),
    ],
)
def test_thresholds_that_nothing_can_be_chosen_for(body: str, code: str) -> None:
    assert said(lambda: compiled(body)).code == code


# -- learning --------------------------------------------------------------------------------------


def test_heads_learn_and_the_best_epoch_is_that_of_all_exits() -> None:
    body = f"{AT_ONE} recover tune {{ epochs = 4; optimizer = Adam(lr = 0.01); batch = 16 }}"
    result = compiled(body)
    (row,) = result.trainings
    assert set(row.after) == {"accuracy", "accuracy of exit 1"}
    assert row.after["accuracy of exit 1"] > row.before["accuracy of exit 1"]


def test_heads_alone_learn_on_a_frozen_trunk() -> None:
    train = 'epochs = 4; keep = last; norms = frozen; only = "*exit_head*"'
    for loss in ("", "; loss = exits()", "; loss = follow_last(temperature = 2)"):
        result = compiled(f"{AT_ONE} recover tune {{ {train}{loss} }}")
        found = result.model
        assert isinstance(found, EarlyExit)
        found.exits = False
        assert torch.equal(found(X), net()(X))
        before = compiled(f"{AT_ONE} {TUNE}").model
        assert isinstance(before, EarlyExit)
        assert not torch.equal(found.everywhere(X)[0][0], before.everywhere(X)[0][0])


def test_weights_of_exits() -> None:
    train = "recover tune {{ epochs = 1; optimizer = SGD(lr = 0.1); keep = last; loss = {} }}"
    texts = ("exits(weights = [2]) + task()", "task() + 2 * exits()", "task() + exits()")
    made = [model_digest(compiled(f"{AT_ONE} {train.format(t)}").compiled.model) for t in texts]
    assert made[0] == made[1] != made[2]
    found = said(lambda: compiled(f"{AT_ONE} {train.format('exits(weights = [1, 1])')}"))
    assert found.code == "F104"
    assert said(lambda: compiled(train.format("exits()"))).code == "F104"


def test_a_gate_learns_when_its_head_is_right() -> None:
    stage = 'stage s { once exit_head_gated at "one" }'
    settings = "epochs = 20; keep = last; batch = 16; optimizer = Adam(lr = 0.02)"
    train = f"recover tune {{{{ {settings}; loss = {{}} }}}}"
    found = {}
    for loss in ("task() + exits()", "task() + exits() + sure()"):
        model = compiled(f"{stage} {train.format(loss)}").model
        assert isinstance(model, EarlyExit)
        with torch.no_grad():
            (early, _), (score,) = model.everywhere(X)
        right = (early.argmax(1) == Y).float()
        found[loss] = float(nn.functional.binary_cross_entropy(score, right))
    learned, untouched = found["task() + exits() + sure()"], found["task() + exits()"]
    assert learned < 0.9 * untouched


# -- artifacts -------------------------------------------------------------------------------------


def test_an_artifact_holds_exits_and_thresholds(tmp_path: Path) -> None:
    result = fitted("accuracy >= 90%")
    path = result.save(tmp_path / "out", check_reload=False)
    loaded = lissom.load(path)
    assert isinstance(loaded, EarlyExit)
    assert isinstance(result.model, EarlyExit)
    assert loaded.thresholds == result.model.thresholds
    wanted, exits = result.model(X, return_exit=True)
    found, also = loaded(X, return_exit=True)
    assert torch.equal(found, wanted)
    assert torch.equal(exits, also)
    result.model.thresholds = [0.75]
    again = lissom.load(result.save(tmp_path / "by_hand", check_reload=False))
    assert isinstance(again, EarlyExit)
    assert again.thresholds == [0.75]


@pytest.mark.parametrize("kind", [Sized, Later, Chunks])
def test_networks_come_back_from_artifacts(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    result = compiled(f"{AT_ONE} {TUNE}", kind().eval(), inputs=(X[:5],))
    loaded = lissom.load(result.save(tmp_path / "out", check_reload=False))
    assert isinstance(loaded, EarlyExit)
    limit = float(loaded.everywhere(X)[1][0].median())
    loaded.thresholds = [limit]
    assert isinstance(result.model, EarlyExit)
    result.model.thresholds = [limit]
    assert torch.equal(loaded(X), result.model(X))


# -- planted mistakes ------------------------------------------------------------------------------


def _order(parts: Any) -> Any:
    found = torch.cat([found for _, found, _ in parts])
    return found, torch.arange(len(found))


PLANTED: dict[str, tuple[Any, str, Any]] = {
    "samples come back in another order": (runtime, "_together", _order),
    "the wrong samples go on": (
        runtime._Waiting,
        "keep",
        lambda self, stay, by_row: _keep(self, stay.flip(0), stay, by_row),
    ),
    "values of those that left go on": (
        runtime._Waiting,
        "keep",
        lambda self, stay, by_row: _keep(self, torch.arange(len(stay)), stay, by_row),
    ),
}


def _keep(self: Any, values: Tensor, rows: Tensor, by_row: Sequence[bool]) -> None:
    pairs = zip(self.values, by_row, strict=True)
    self.values = tuple(v.index_select(0, values) if row else v for v, row in pairs)
    self.rows = rows if self.rows is None else self.rows[rows]


@pytest.mark.parametrize("kind", PLANTED)
def test_a_mistake_in_the_running_network_is_found(kind: str, monkeypatch: Any) -> None:
    owner, name, wrong = PLANTED[kind]
    monkeypatch.setattr(owner, name, wrong)
    result = compiled(f"{AT_ONE} {TUNE}")
    (found,) = result.journal.of(Refused)
    assert rows.LEAVING in found.reason


def test_scores_are_of_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.1, 0.0, 0.0]])
    p = logits.softmax(1)
    torch.testing.assert_close(runtime.confidence(logits), p.amax(1))
    torch.testing.assert_close(runtime.entropy(logits), -(p * p.log()).sum(1))
    torch.testing.assert_close(runtime.margin(logits), p[:, 0] - p[:, 1])
    for score, shift in itertools.product(
        (runtime.confidence, runtime.entropy, runtime.margin), (5, 50)
    ):
        torch.testing.assert_close(score(logits + shift), score(logits))


def test_an_error_of_the_rule_points_at_its_exit() -> None:
    wrong = RULE.replace("CONDITION", "confidence(e)")
    with pytest.raises(LissomError) as caught:
        compiled(f'stage s {{ once leave at "one" }} {TUNE}', rules=wrong)
    assert caught.value.diagnostics[0].labels[0].span is not None
