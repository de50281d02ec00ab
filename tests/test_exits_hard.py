"""Early exits on hostile networks: writes to memory, checks of sizes, examples that show little."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.evidence.artifact import EXITS
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime.exits import EarlyExit
from lissom.rewrite.store.folder import save
from lissom.rewrite.store.values import canonical_json

from .support import Fn
from .test_exits import TUNE, compiled
from .test_training_bad_input import said

torch.manual_seed(0)
X = torch.randn(12, 3, 8, 8)
Run = Callable[[Any, Tensor], Tensor]


def parts(run: Run, width: int = 4) -> nn.Module:
    torch.manual_seed(5)
    layers = {"one": nn.Conv2d(3, 4, 1), "two": nn.Conv2d(4, 4, 1), "head": nn.Linear(width, 2)}
    return Fn(run, **layers).eval()


def plain(m: Any, x: Tensor) -> Tensor:
    return m.head(m.two(m.one(x)).mean((2, 3)))


def result_of(run: Run, inputs: Any = None, at: str = "one") -> lissom.Result:
    body = f'stage s {{ once exit_head at "{at}" }} {TUNE}'
    return compiled(body, parts(run), inputs=inputs, data=[(X,)], metrics={})


# -- writes to memory ------------------------------------------------------------------------------


def writes_in_front(m: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 0.0
    return plain(m, x)


def writes_behind(m: Any, x: Tensor) -> Tensor:
    a = m.one(x)
    z = m.two(a)
    a[:, :2] = 3.0
    return m.head((z + a).mean((2, 3)))


def writes_before_it_is_read_in_front(m: Any, x: Tensor) -> Tensor:
    a = m.one(x)
    early = a.mean((2, 3))
    a.mul_(2)
    return m.head(m.two(a).mean((2, 3)) + early)


def writes_through_a_view(m: Any, x: Tensor) -> Tensor:
    a = m.one(x)
    v = a[:, :2]
    z = m.two(a)
    a.add_(1)
    return m.head(z.mean((2, 3)) + v.sum((2, 3)).repeat(1, 2))


def writes_many_times(m: Any, x: Tensor) -> Tensor:
    a = m.one(x)
    b = a.clone()
    y = m.two(a)
    b.mul_(a)
    b.add_(y)
    q = m.two(b)
    b.sub_(1.0)
    return m.head((q + b).mean((2, 3)))


WRITES: dict[str, Run] = {
    run.__name__: run
    for run in (
        writes_in_front,
        writes_behind,
        writes_before_it_is_read_in_front,
        writes_through_a_view,
        writes_many_times,
    )
}


def is_the_network(found: nn.Module, whole: nn.Module, x: Tensor = X) -> None:
    """Samples that stay get what the network gives, whoever leaves."""
    assert isinstance(found, EarlyExit)
    wanted, (scores,) = whole(x.clone()), found.everywhere(x.clone())[1]
    found.exits = False
    assert torch.equal(found(x.clone()), wanted)
    found.exits = True
    for level in (0.2, 0.5, 0.8):
        found.thresholds = [float(scores.quantile(level))]
        got, exits = found(x.clone(), return_exit=True)
        assert sorted(set(exits.tolist())) == [1, 2]
        torch.testing.assert_close(got[exits == 2], wanted[exits == 2])


@pytest.mark.parametrize("kind", WRITES)
def test_what_is_written_in_place_is_written(kind: str, tmp_path: Path) -> None:
    at = "one" if kind == "writes_in_front" else "two"
    result = result_of(WRITES[kind], (X[:4],), at)
    is_the_network(result.model, parts(WRITES[kind]))
    is_the_network(
        lissom.load(result.save(tmp_path / "out", check_reload=False)), parts(WRITES[kind])
    )


# -- checks of sizes -------------------------------------------------------------------------------


def branches(m: Any, x: Tensor) -> Tensor:
    y = m.two(m.one(x))
    return m.head((y * 3 if y.shape[2] == y.shape[3] else y).mean((2, 3)))


def branches_by_batch(m: Any, x: Tensor) -> Tensor:
    y = m.two(m.one(x))
    return m.head((y * 3 if len(y) > 2 else y).mean((2, 3)))


def test_a_call_for_which_the_graph_does_not_hold_is_still_refused(tmp_path: Path) -> None:
    result = result_of(branches, (X[:4],))
    loaded = lissom.load(result.save(tmp_path / "out", check_reload=False))
    for model, threshold in itertools.product((result.model, loaded), (-1.0, 2.0)):
        assert isinstance(model, EarlyExit)
        model.thresholds = [threshold]
        with pytest.raises(AssertionError, match="the graph holds where"):
            model(X[..., :5])


def test_a_network_that_branches_by_its_batch_has_no_exit() -> None:
    (found,) = result_of(branches_by_batch, (X[:4],)).journal.of(Refused)
    assert "does not run" in found.reason


# -- examples --------------------------------------------------------------------------------------


def mixes_behind(m: Any, x: Tensor) -> Tensor:
    y = m.one(x)
    return m.head((m.two(y) - y.mean(0, keepdim=True)).mean((2, 3)))


def mixes_in_front(m: Any, x: Tensor) -> Tensor:
    y = m.one(x)
    return m.head(m.two(y - y.mean(0, keepdim=True)).mean((2, 3)))


def divides_by_batch(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) / len(x)


def takes_by_place(m: Any, x: Tensor) -> Tensor:
    places = torch.arange(len(x))
    return plain(m, x[places])[places]


EXAMPLES = {
    "of one": X[:1],
    "of zeros": X[:4] * 0,
    "of ones": X[:2] * 0 + 1,
    "one of zeros": X[:1] * 0,
}


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("run", [mixes_behind, mixes_in_front, divides_by_batch])
def test_samples_that_know_each_other_are_found_whatever_the_example(
    run: Run, example: str
) -> None:
    (found,) = result_of(run, (EXAMPLES[example],)).journal.of(Refused)
    assert "does not hold" in found.reason


def test_places_in_a_batch_are_found_with_an_example_of_one_sample() -> None:
    (found,) = result_of(takes_by_place, (X[:1],)).journal.of(Refused)
    assert "with fewer samples" in found.reason


def test_an_example_of_one_sample_is_enough() -> None:
    is_the_network(result_of(plain, (X[:1],)).model, parts(plain))


class Several(nn.Module):
    """More stages than samples leave one after another from a small example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        self.stages = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for stage in self.stages:
            y = stage(y)
        return self.head((y - y.mean(0, keepdim=True)).mean((2, 3)))


def test_each_of_many_exits_is_tried_by_itself() -> None:
    body = f'stage s {{ once exit_head at "stages.*" }} {TUNE}'
    result = compiled(body, Several().eval(), inputs=(X[:3],), data=[(X,)], metrics={})
    assert not result.applied


def test_one_row_for_all_samples_stays_one_row() -> None:
    """Places [1, L] that an example of one sample does not tell from a row for each sample."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(8)
            self.words, self.places = nn.Embedding(20, 8), nn.Embedding(9, 8)
            self.one, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, ids: Tensor, at: Tensor) -> Tensor:
            y = self.one(self.words(ids))
            return self.head((y + self.places(at)).relu().mean(1))

    ids, at, model = torch.randint(0, 20, (9, 6)), torch.arange(6)[None], Placed().eval()
    body = f'stage s {{ once exit_head_sequence at "one" }} {TUNE}'
    found = compiled(body, model, (ids[:1], at), data=[((ids, at),)], metrics={}).model
    assert isinstance(found, EarlyExit)
    found.thresholds = [float(found.everywhere(ids, at)[1][0].median())]
    got, exits = found(ids, at, return_exit=True)
    assert sorted(set(exits.tolist())) == [1, 2]
    torch.testing.assert_close(got[exits == 2], model(ids, at)[exits == 2])


# -- inputs that are no rows of numbers ------------------------------------------------------------


class Scaled(nn.Module):
    """A number, an input by its name and a part of a dict are read behind the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = parts(plain)

    def forward(self, batch: dict[str, Tensor], scale: float = 2.0, bias: Any = None) -> Tensor:
        y = self.net.two(self.net.one(batch["image"]) * scale)
        y = y.mean((2, 3)) * scale + batch["extra"]
        return self.net.head(y if bias is None else y + bias)


def taken(size: int) -> dict[str, Tensor]:
    return {"image": X[:size], "extra": X.flatten(1)[:size, :4]}


def test_numbers_and_parts_of_inputs_are_read_behind_an_exit() -> None:
    body = f'stage s {{ once exit_head at "net.one" }} {TUNE}'
    model, data = Scaled().eval(), [((taken(12),), torch.zeros(12).long())]
    result = compiled(body, model, (taken(4),), data=data, metrics={})
    found = result.model
    assert isinstance(found, EarlyExit)
    found.thresholds = [float(found.everywhere(taken(12))[1][0].median())]
    got, exits = found(taken(12), return_exit=True)
    assert sorted(set(exits.tolist())) == [1, 2]
    torch.testing.assert_close(got[exits == 2], model(taken(12))[exits == 2])
    assert len(found.measure(taken(4), rounds=1)) == 2
    assert found(taken(4), budget=1e9).shape == (4, 2)


class Remembers(nn.Module):
    """The state of a layer goes on behind the exit."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.again = again
        self.one, self.two = (nn.LSTM(3, 3, batch_first=True) for _ in range(2))
        self.mid, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.one(x)
        y = self.mid(y)
        y, _ = self.two(y, (h, c)) if self.again else self.two(y)
        return self.head(y[:, -1] + h[-1])


def test_states_of_layers() -> None:
    """Their first axis counts layers: a row of each sample is what `h[-1]` gives."""
    x = X[:, :, 0].transpose(1, 2)  # [N, L, C]
    body = f'stage s {{ once exit_head_sequence at "mid" }} {TUNE}'
    for again in (False, True):
        model = Remembers(again).eval()
        result = compiled(body, model, (x[:4],), data=[(x,)], metrics={})
        if again:
            (refused,) = result.journal.of(Refused)
            assert "its first axis is not the batch" in refused.reason
            continue
        is_the_network(result.model, model, x)


# -- thresholds ------------------------------------------------------------------------------------

Y = (X.mean((1, 2, 3)) > 0).long()


def fitted(asked: str, model: nn.Module, inputs: Any, data: Any, **given: Any) -> lissom.Result:
    at = "net.one" if isinstance(model, Scaled) else "one"
    body = f'stage s {{ once exit_head at "{at}" }} {TUNE} exit on valid until {asked}'
    return compiled(body, model, inputs=inputs, data=data, **given)


def test_thresholds_for_inputs_in_a_dict() -> None:
    result = fitted(
        "accuracy >= 1%",
        Scaled().eval(),
        (taken(4),),
        [((taken(12),), Y)],
        metrics={"accuracy": named},
    )
    assert result.exits is not None
    assert result.exits.rows[0].share == 1


def named(model: nn.Module, batches: Any) -> float:
    ((inputs, y),) = batches
    return float((model(*inputs).argmax(1) == y).float().mean())


def test_batches_with_the_same_first_input_are_told_apart() -> None:
    """The mean over both is taken from what the network gives for each."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = parts(plain)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.net(x + shift)

    data = [((X, X * 0 + at), Y) for at in (0.0, 40.0)]

    def spread(model: nn.Module, batches: Any) -> float:
        first, second = (model(*batches[at][0]) for at in (1, 0))
        return float((first - second).abs().mean())

    body = (
        f'stage s {{ once exit_head at "net.one" }} {TUNE} exit on valid until macs(model) <= 99%'
    )
    result = compiled(body, Shifted().eval(), (X[:4], X[:4]), data=data, metrics={"spread": spread})
    assert result.exits is not None
    assert result.exits.metrics["spread"] == pytest.approx(spread(result.model, data), rel=1e-4)


def test_scores_that_are_no_numbers_say_nothing_of_thresholds() -> None:
    found = fitted("accuracy >= 0%", parts(plain), (X[:4],), [(X * torch.nan, Y)]).model
    assert isinstance(found, EarlyExit)
    assert found.thresholds == [pytest.approx(0.9)]


@pytest.mark.parametrize(
    "asked",
    ["accuracy >= 1% and macs(model) <= 99%", "1% <= accuracy", "accuracy >= 101% or 1 <= 2"],
)
def test_conditions_are_joined_and_turned_round(asked: str) -> None:
    assert fitted(asked, parts(plain), (X[:4],), [(X, Y)]).exits is not None


def test_both_of_two_conditions_hold() -> None:
    asked = "macs(model) <= 99% and accuracy >= 101%"
    assert fitted(asked, parts(plain), (X[:4],), [(X, Y)]).exits is None


@pytest.mark.parametrize("asked", ["accuracy", "true", "5", "accuracy >= 1% and macs(model)"])
def test_a_condition_that_compares_nothing(asked: str) -> None:
    found = said(lambda: fitted(asked, parts(plain), (X[:4],), [(X, Y)]))
    assert found.code == "R001"
    assert "compares nothing" in found.message


def test_data_without_a_sample() -> None:
    def data(split: str) -> Any:
        return [(X, Y)] if split != "none" else [(X[:0], Y[:0])]

    stage = f'stage s {{ once exit_head at "one" }} {TUNE}'
    body = f'data empty = sample("none", all)\n{stage} exit on empty until macs(model) <= 99%'
    found = said(lambda: compiled(body, parts(plain), (X[:4],), data=data, metrics={}))
    assert (found.code, found.message) == ("D002", "`empty` holds no sample")


@pytest.mark.parametrize("change", ["no rows", "other rows", "too many sizes"])
def test_what_an_artifact_says_of_its_exits_fits_its_graph(change: str, tmp_path: Path) -> None:
    result = result_of(plain)
    behind = result.compiled.behind
    rows, sizes = dict(behind.rows), set(behind.sizes)
    if change == "too many sizes":
        sizes |= set(rows)
    else:
        rows = {} if change == "no rows" else {"nothing": True}
    document = {"rows": rows, "sizes": sorted(sizes), "order": dict(behind.order)}
    save(result.compiled.model, tmp_path / "made", {EXITS: canonical_json(document)})
    assert said(lambda: lissom.load(tmp_path / "made")).code == "A025"
