"""Students and teachers: what each term computes, who may teach, what teachers keep."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lissom
from lissom.__main__ import main
from lissom.demo import model as digits
from lissom.grammar.diagnostics import Label, LissomError
from lissom.grammar.fmt.format import format_text
from lissom.rewrite.graph.digest import model_digest
from lissom.rewrite.train.data import TrainingData
from lissom.rewrite.train.recorded import write_recorded
from lissom.rewrite.train.settings import Called
from lissom.rewrite.train.taps import name_of_place
from lissom.rewrite.train.teachers import Ensemble, RememberedTeacher, remembered
from lissom.rewrite.train.terms import AlongAxis, Losses, PenalisedWeights, StepSeen, adapter

from .learning import SGD, epochs, net, notes, run, trained

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = f"epochs = 1; {SGD}"
NO_WEIGHTS = PenalisedWeights(list, list)


def taught(loss: str, teacher: str = "big", more: str = ONE, **given: Any) -> lissom.Result:
    """The small network after a training with this teacher."""
    body = f"recover tune {{ teacher = {teacher}; loss = {loss}; {more} }}"
    return run(body, **({"models": {"big": net(7, 80)}} | given))


def code(**given: Any) -> str:
    with pytest.raises(LissomError) as caught:
        taught(**given)
    (found,) = caught.value.diagnostics
    return f"{found.code} {found.message} {' '.join(found.helps)}"


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(name: str, seen: StepSeen, *args: Any, **keywords: Any) -> float:
    call = Called(name, args, keywords, None, 2.0)  # type: ignore[arg-type]
    return float(Losses([call], nn.functional.cross_entropy, NO_WEIGHTS)(seen)) / 2


# -- what terms compute ----------------------------------------------------------------------------


def by_hand_kl(own: Tensor, taught: Tensor, heat: float) -> float:
    """Hinton's definition, sample by sample, class by class."""
    total = 0.0
    for row, other in zip(own.tolist(), taught.tolist(), strict=True):
        p = [torch.e ** (x / heat) for x in other]
        q = [torch.e ** (x / heat) for x in row]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * float(torch.log(torch.tensor(a / b))) for a, b in zip(p, q, strict=True))
    return heat**2 * total / len(own)


@pytest.mark.parametrize("heat", [1.0, 4.0])
def test_kl_is_the_divergence_of_soft_targets_times_the_square_of_the_temperature(
    heat: float,
) -> None:
    own, other = 3 * numbers(5, 4, seed=0), 3 * numbers(5, 4, seed=1)
    found = value("kl", StepSeen(own, None, other), temperature=heat)
    assert found == pytest.approx(by_hand_kl(own, other, heat), rel=1e-5)


def test_logits_are_regressed() -> None:
    own, other = numbers(5, 4, seed=0), numbers(5, 4, seed=1)
    expected = sum((a - b) ** 2 for a, b in zip(own.ravel(), other.ravel(), strict=True)) / 20
    assert value("logits", StepSeen(own, None, other)) == pytest.approx(float(expected))


def test_attention_compares_where_both_are_active() -> None:
    own, other = numbers(2, 3, 4, 5, seed=0), numbers(2, 6, 4, 5, seed=1)
    maps = []
    for one in (own, other):
        at = (one**2).sum(1).reshape(2, 20)
        maps.append(at / (at**2).sum(1, keepdim=True).sqrt())
    expected = float(((maps[0] - maps[1]) ** 2).sum(1).mean())
    seen = StepSeen(None, None, None, {name_of_place("attention", "a", "b"): own}, {"b": other})
    assert value("attention", seen, "a", of="b") == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 4, 5), (3, 6, 7), (3, 7, 6)])
def test_an_adapter_is_a_linear_layer_along_the_axis_that_differs(shape: tuple[int, ...]) -> None:
    axis = shape.index(6)
    wide = tuple(9 if at == axis else size for at, size in enumerate(shape))
    own, other = numbers(*shape, seed=0), numbers(*wide, seed=1)
    layer = adapter(own, other)
    assert isinstance(layer, AlongAxis)
    w, b = layer.linear.weight, layer.linear.bias
    moved = torch.einsum("oi,n...i->n...o", w, own.movedim(axis, -1)) + b
    assert torch.allclose(layer(own), moved.movedim(-1, axis))
    assert layer(own).shape == other.shape
    if len(shape) == 4:
        assert torch.allclose(layer(own), nn.functional.conv2d(own, w[:, :, None, None], b))


def test_values_that_are_alike_or_differ_otherwise_have_no_adapter() -> None:
    own = numbers(3, 6, 4, 4, seed=0)
    for shape in ((3, 6, 4, 4), (3, 7, 4, 5), (3, 6, 4), (3, 7)):
        assert adapter(own, numbers(*shape, seed=1)) is None


def test_a_hint_is_a_squared_error() -> None:
    own, other = numbers(3, 6, seed=0), numbers(3, 6, seed=1)
    seen = StepSeen(None, None, None, {name_of_place("hint", "a.b", "c"): own}, {"c": other})
    expected = float(((own - other) ** 2).mean())
    assert value("hint", seen, "a.b", of="c") == pytest.approx(expected)


def test_a_hint_goes_through_its_adapter() -> None:
    """What is wider can be followed, and the adapter learns."""
    first, last = (
        epochs(taught('hint(at = "2")', more=f"epochs = {count}; {SGD}"))[-1].loss
        for count in (1, 8)
    )
    assert first is not None
    assert last is not None
    assert last < 0.5 * first


def test_two_hints_at_one_place_have_two_adapters() -> None:
    loss = 'task() + hint(at = "2", of = "2") + hint(at = "2", of = "1")'
    deep = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Linear(30, 10)).eval()
    result = taught(loss, models={"big": deep})
    assert epochs(result)[-1].loss is not None


def test_adapters_are_trained_and_belong_to_no_model() -> None:
    loss = 'task() + hint(at = "2", of = "2")'
    result = taught(loss)
    plain = run(f"recover tune {{ {ONE} }}")
    assert [n for n, _ in result.model.named_parameters()] == [
        n for n, _ in plain.model.named_parameters()
    ]
    moved = trained(result)[0].weights
    assert moved == trained(plain)[0].weights == sum(w.numel() for w in plain.model.parameters())
    assert [str(n.target) for n in result.model.graph.nodes] == [
        str(n.target) for n in plain.model.graph.nodes
    ]


def test_values_are_those_that_a_place_gives_though_they_are_overwritten_later() -> None:
    """An activation in place writes over what the layer in front of it gave."""
    models = []
    for inplace in (False, True):
        layers = list(net(7, 80))
        layers[2] = nn.ReLU(inplace=inplace)
        models.append(nn.Sequential(*layers).eval())
    losses = [epochs(taught('hint(at = "1")', models={"big": model}))[-1].loss for model in models]
    assert losses[0] == losses[1]


# -- what teachers keep ----------------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, Any]:
    """Bits, modes and gradients."""
    held = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes = {f"{name} mode": module.training for name, module in model.named_modules()}
    grads = {f"{name} grad": w.grad for name, w in model.named_parameters()}
    return held | modes | grads


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(a, two[k]) if isinstance(a, Tensor) else a is two[k] for k, a in one.items()
    )


def with_norms(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(inplace=True)
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(20, 10)).eval()


def test_a_teacher_is_never_changed() -> None:
    big, model = with_norms(1), with_norms(2)
    before = everything(big), everything(model)
    loss = 'kl() + task() + hint(at = "1")'
    taught(loss, "0.5 * big + original", f"{ONE}; augment = shift(1)", model=model,
           models={"big": big})  # fmt: skip
    assert same(before[0], everything(big))
    assert same(before[1], everything(model))


def test_a_teacher_answers_as_in_eval_mode_while_its_student_trains() -> None:
    """`original` has the same dropout as its student, which trains with it: the loss is what the
    student's dropout does, and would be twice that if both dropped.
    """
    model = with_norms(2)
    still = "epochs = 2; optimizer = SGD(lr = 1e-12); augment = noise(0.01); norms = frozen"
    found = epochs(taught("logits()", "original", still, model=model))[-1].loss
    x = torch.cat([x for x, _ in digits.data("train")])
    with torch.no_grad():
        hidden, last = model[:4](x), model[5].weight
    expected = float(((hidden**2) @ (last.detach() ** 2).T).mean())  # type: ignore[operator]
    assert found == pytest.approx(expected, rel=0.1)


def test_a_model_is_built_once_and_stays_what_it_was_built_as() -> None:
    """Though it is a student, is pruned, and then teaches."""
    built = []

    def build() -> nn.Module:
        built.append(1)
        return net(7, 80)

    prune = "stage s { once prune_weights(ratio = 50%, budget = 100%) }"
    body = f"""
  recover zero {{ teacher = big; loss = kl(); {ONE} }}
  recover one {{ student = big; {ONE} }}
  {prune}
  recover two {{ teacher = big; loss = kl(); {ONE} }}
"""
    result = run(body, models={"big": build})
    assert len(built) == 1
    first, _, last = trained(result)
    assert first.teacher == last.teacher


# -- several teachers ------------------------------------------------------------------------------


def said(model: nn.Module, split: str = "train") -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in digits.data(split)])


def first_loss(loss: str, teacher: str, **given: Any) -> float:
    """The mean loss of an epoch in which nothing moves."""
    result = taught(loss, teacher, "epochs = 1; optimizer = SGD(lr = 1e-20)", **given)
    found = epochs(result)[-1].loss
    assert found is not None
    return found


BIG = {"a": net(1, 20), "b": net(2, 30), "c": net(3, 40)}


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("a + b + c", (1, 1, 1)),
        ("[a, b]", (1, 1, 0)),
        ("0.5 * a + 2 * (b + c)", (0.5, 2, 2)),
        ("a * 3 + b", (3, 1, 0)),
    ],
)
def test_an_ensemble_is_the_weighted_mean_of_its_logits(text: str, weights: Any) -> None:
    parts = [w * said(model) for w, model in zip(weights, BIG.values(), strict=True)]
    expected = nn.functional.mse_loss(said(net()), sum(parts) / sum(weights))  # type: ignore[arg-type]
    assert first_loss("logits()", text, models=BIG) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("probabilities(a + b + c)", (1, 1, 1)),
        ("probabilities(a, 3 * b)", (1, 3, 0)),
        ("probabilities([a, b])", (1, 1, 0)),
    ],
)
def test_an_ensemble_may_agree_on_probabilities(text: str, weights: Any) -> None:
    parts = [w * said(m).softmax(1) for w, m in zip(weights, BIG.values(), strict=True)]
    mean = sum(parts) / sum(weights)  # type: ignore[operator]
    own = said(net()).softmax(1)
    expected = (mean * (mean.log() - own.log())).sum(1).mean()  # type: ignore[union-attr]
    assert first_loss("kl()", text, models=BIG) == pytest.approx(float(expected), rel=1e-2)


def test_ensembles_may_stand_in_ensembles() -> None:
    found = first_loss("kl()", "a + probabilities(b)", models=BIG)
    mean = (said(BIG["a"]) + said(BIG["b"]).log_softmax(1)) / 2
    expected = nn.functional.kl_div(
        said(net()).log_softmax(1), mean.log_softmax(1), reduction="batchmean", log_target=True
    )
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_a_probability_that_rounds_to_nothing_is_no_end_of_the_training() -> None:
    sure = Ensemble([(1.0, lambda args, rows: (torch.tensor([[0.0, 2000.0]]), {}))] * 2, True)  # type: ignore[list-item]
    outputs, _ = sure((), None)
    assert torch.allclose(outputs, torch.tensor([[-2000.0, 0.0]]))


def test_only_the_first_of_several_is_looked_into() -> None:
    """Places of the others need not exist."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    loss = 'kl() + hint(at = "2", of = "2")'
    assert taught(loss, "big + flat", models={"big": net(7, 80), "flat": flat}).compiled.verified
    assert "U008 the teacher has nothing at `2`" in code(
        loss=loss, teacher="flat + big", models={"big": net(7, 80), "flat": flat}
    )


def test_an_assistant_stands_between_a_teacher_and_a_student() -> None:
    body = f"""
  recover assistant {{ student = middle; teacher = big; loss = kl(); {ONE} }}
  recover small {{ student = small; teacher = assistant; loss = kl(); {ONE} }}
"""
    models = {"big": net(7, 80), "middle": net(3, 50), "small": net(4, 6)}
    result = run(body, models=models)
    alone = run(body.partition("recover small")[0], models=models).model
    by_model = run(
        f"recover small {{ student = small; teacher = given; loss = kl(); {ONE} }}",
        models=models | {"given": alone},
    )
    for a, b in zip(result.model.parameters(), by_model.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [w.shape[0] for w in result.model.parameters() if w.dim() > 1] == [6, 10]


def test_a_student_takes_the_place_of_the_model_if_its_outputs_have_the_same_shape() -> None:
    result = run(f"recover t {{ student = big; {ONE} }}", models={"big": net(7, 80)})
    assert next(result.model.parameters()).shape == (80, 64)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 9)).eval()
    with pytest.raises(LissomError, match=r"F105.*`big` gives other outputs"):
        run(f"recover t {{ student = big; {ONE} }}", models={"big": other})


# -- outputs in a file -----------------------------------------------------------------------------

FILE = """
import torch
from torch import Tensor, nn
from lissom.demo.model import data, inputs, metrics
from tests.learning import net


def build():
    return net(7, 80)


class Service(nn.Module):
    \"\"\"What nobody can look into.\"\"\"

    def forward(self, x):
        return eval("build()(x)")


def service():
    return Service().eval()


def training():
    return build().train()


def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair().eval()


def endless():
    class Endless(nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0
    return Endless().eval()


def broken():
    class Broken(nn.Module):
        def forward(self, x):
            raise OSError("no answer")
    return Broken().eval()
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "teacher_file.py"
    path.write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return path


def record(file: Path, *more: str, build: str = "build", out: str = "t.safetensors") -> Path:
    assert main(["record", f"{file}:{build}", "-o", str(file.parent / out), *more]) == 0
    return file.parent / out


RECORDED = 'recorded("t.safetensors")'


def digest(result: lissom.Result) -> str:
    return model_digest(result.model)


def test_recorded_outputs_teach_bit_for_bit_what_their_model_teaches(file: Path) -> None:
    by_model = taught("kl(temperature = 2) + 0.1 * task()", more=f"epochs = 2; {SGD}")
    for build in ("build", "service"):
        record(file, build=build)
        by_file = taught(
            "kl(temperature = 2) + 0.1 * task()", RECORDED, f"epochs = 2; {SGD}", models={}
        )
        assert digest(by_file) == digest(by_model)
    assert trained(by_file)[0].teacher != trained(by_model)[0].teacher


def test_a_recorded_teacher_may_be_one_of_several(file: Path) -> None:
    record(file)
    one, two = (
        taught("kl()", f"0.5 * {RECORDED} + original"),
        taught("kl()", "0.5 * big + original"),
    )
    assert digest(one) == digest(two)


def test_what_a_recorded_file_says_of_itself(file: Path) -> None:
    path = record(file, "--count", "250")
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    about = json.loads(header["__metadata__"]["lissom"])
    pairs = [((x,), y) for x, y in digits.data("train")]
    pairs = [*pairs[:2], ((pairs[2][0][0][:50],), pairs[2][1][:50])]
    expected = TrainingData(pairs, Label(None)).inputs_digest()
    assert about == {
        "data": expected, "split": "train", "samples": 250, "torch": torch.__version__,
    }  # fmt: skip
    outputs = load_file(path)["outputs"]
    assert torch.equal(outputs[:200], said(net(7, 80))[:200])
    assert outputs.shape == (250, 10)


def test_recorded_outputs_of_other_samples_are_refused(file: Path) -> None:
    record(file, "--count", "250")
    assert code(loss="kl()", teacher=RECORDED).startswith("F105 recorded outputs are of other data")
    body = f"""data few = sample("train", 250)
    recover t {{ data = few; teacher = {RECORDED}; loss = kl(); {ONE} }}"""
    assert run(body).compiled.verified
    record(file, "--split", "valid")
    with pytest.raises(LissomError, match="F105"):
        run(
            f"""data few = sample("train", 297)
            recover t {{ data = few; teacher = {RECORDED}; loss = kl(); {ONE} }}"""
        )


def test_augmentation_that_a_file_does_not_see_is_told(file: Path) -> None:
    record(file)
    result = taught("kl()", RECORDED, f"{ONE}; augment = noise(0.01)")
    assert len(notes(result, "F107")) == 1
    assert notes(taught("kl()", RECORDED), "F107") == []
    assert notes(taught("kl()", more=f"{ONE}; augment = noise(0.01)"), "F107") == []


def test_the_inside_of_a_file_cannot_be_followed(file: Path) -> None:
    record(file)
    assert code(loss='kl() + hint(at = "2")', teacher=RECORDED).startswith("F105 a file holds")


@pytest.mark.parametrize(
    "damage", ["none", "cut", "empty", "folder", "pipe", "link", "header", "table", "deep", "text",
               "tensor", "integers", "infinite", "number", "unsaid"],
)  # fmt: skip
def test_a_file_that_holds_no_outputs_is_refused(damage: str, file: Path) -> None:
    path = record(file)
    raw, outputs = path.read_bytes(), load_file(path)["outputs"]
    about = {"data": "x", "samples": 1000}
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage == "link":
        path.symlink_to(file)
    elif damage in ("cut", "empty", "header", "text"):
        kept = {"cut": raw[:900], "empty": b"", "text": b"outputs"}
        path.write_bytes(kept.get(damage, b"\xff" * 8 + raw[8:]))
    elif damage == "tensor":
        save_file({"inputs": outputs}, path, {"lissom": "{}"})
    elif damage in ("table", "deep", "unsaid"):
        texts = {"table": "[1]", "deep": "[" * 100_000}
        said = {"lissom": texts[damage]} if damage in texts else None
        save_file({"outputs": outputs}, path, said)
    elif damage != "none":
        wrong = {"integers": outputs.int(), "infinite": outputs / 0, "number": outputs[0, 0]}
        write_recorded(path, wrong[damage], about)
    assert code(loss="kl()", teacher=RECORDED).startswith("F105")


@pytest.mark.parametrize(
    ("build", "more", "expected"),
    [
        ("training", (), "M001"),
        ("pair", (), "F105"),
        ("endless", (), "F105"),
        ("broken", (), "V108"),
        ("build", ("--split", "nowhere"), "D001"),
        ("nothing", (), "U003"),
    ],
)
def test_what_cannot_be_recorded_is_named(
    build: str, more: tuple[str, ...], expected: str, file: Path, capsys: Any
) -> None:
    place = file.parent / "t.safetensors"
    place.write_bytes(b"what was there")
    assert main(["record", f"{file}:{build}", "-o", str(place), *more]) != 0
    assert expected in capsys.readouterr().err
    assert place.read_bytes() == b"what was there"


def test_a_place_that_cannot_be_written_is_named(file: Path, capsys: Any) -> None:
    (file.parent / "taken").write_text("")
    assert main(["record", f"{file}", "-o", str(file.parent / "taken" / "t")]) == 2
    assert "U005" in capsys.readouterr().err


NAMED = """
import torch
from torch import nn


class Masked(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(6, 3)

    def forward(self, x, scale=None, mask=None):
        out = self.inner(x if scale is None else x * scale)
        return out if mask is None else out * mask


def build():
    return Masked(1).eval()


def samples(kind):
    torch.manual_seed(0)
    x, mask = torch.rand(30, 6), torch.rand(30, 1).round()
    for a, b in zip(x.split(8), mask.split(8)):
        y = torch.arange(len(a)) % 3
        yield {"mask": b, "x": a, "y": y} if kind == "named" else ((a, None, b), y)


def data(split):
    return list(samples(KIND))


def inputs():
    x = samples(KIND)
    first = next(x)
    return {"x": first["x"], "mask": first["mask"]} if KIND == "named" else first[0]
"""


@pytest.mark.parametrize("kind", ["named", "tuple"])
def test_inputs_may_go_by_name_or_be_several(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap in front of an input is nothing that could not be drawn from."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"masked_{kind}.py"
    path.write_text(f'KIND = "{kind}"\n{NAMED}')
    record(path)
    space: dict[str, Any] = {}
    exec(path.read_text(), space)
    program = """pipeline p {
  data train = sample("train", all)
  recover t { teacher = WHO; loss = kl() + task(); epochs = 2; batch = 7 }
}"""
    made = []
    for who in ("big", RECORDED):
        model = space["Masked"](2).eval()
        result = lissom.compile(model, program.replace("WHO", who), inputs=space["inputs"](),
                                data=space["data"], models={"big": space["build"]})  # fmt: skip
        assert trained(result)[0].samples == 30
        made.append(digest(result))
    assert made[0] == made[1]


# -- asked once ------------------------------------------------------------------------------------


def test_remembered_answers_are_those_that_are_asked() -> None:
    pairs = [((x,), y) for x, y in digits.data("train")]
    data, model = TrainingData(pairs, Label(None)), net(7, 80)
    asked: list[int] = []

    class Counted:
        def __call__(self, args: Any, rows: Tensor | None) -> Any:
            asked.append(len(args[0]))
            with torch.no_grad():
                return model(*args), {}

        def digest(self) -> str:
            return ""

    teacher = remembered(Counted(), data)
    assert isinstance(teacher, RememberedTeacher)
    assert sum(asked) == 1000 + 100  # and one batch to see how much that is
    for batch in data.epoch(64, torch.Generator().manual_seed(0)):
        args = batch.args
        with torch.no_grad():
            assert torch.allclose(teacher(args, batch.rows)[0], model(*args), atol=1e-6)


def test_batches_that_do_not_fit_together_have_rows_too() -> None:
    """Texts of several lengths, with one answer each."""
    x = [torch.rand(4, length) for length in (3, 5, 2)]
    data = TrainingData([((a,), None) for a in x], Label(None))
    assert data.table is None
    teacher = remembered(lambda args, rows: (args[0].sum(1, keepdim=True), {}), data)  # type: ignore[arg-type]
    assert isinstance(teacher, RememberedTeacher)
    for batch in data.epoch(2, torch.Generator().manual_seed(0)):
        assert torch.equal(teacher(batch.args, batch.rows)[0], batch.args[0].sum(1, keepdim=True))


def test_a_checkpoint_of_another_teacher_counts_for_nothing(tmp_path: Path) -> None:
    for seed in (7, 8):
        result = taught("kl()", models={"big": net(seed, 80)}, checkpoints=tmp_path)
        plain = taught("kl()", models={"big": net(seed, 80)})
        assert digest(result) == digest(plain)
    assert len(list(tmp_path.iterdir())) == 2


def test_adapters_go_on_where_an_interrupted_training_stood(tmp_path: Path) -> None:
    loss, more = 'task() + hint(at = "2")', f"epochs = 3; {SGD}"
    asked: list[int] = []

    def interrupted(model: nn.Module, batches: Any) -> float:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return digits.accuracy(model, batches)

    with pytest.raises(KeyboardInterrupt):
        taught(loss, more=more, metrics={"accuracy": interrupted}, checkpoints=tmp_path)
    resumed, whole = taught(loss, more=more, checkpoints=tmp_path), taught(loss, more=more)
    assert digest(resumed) == digest(whole)
    assert [e.loss for e in epochs(resumed)] == [e.loss for e in epochs(whole)]


def test_a_teacher_sees_what_its_student_sees() -> None:
    """Otherwise the original would not agree with itself on samples that are augmented."""
    still = "epochs = 1; optimizer = SGD(lr = 1e-20); augment = shift(2) + noise(0.3)"
    assert epochs(taught("logits()", "original", still))[-1].loss == pytest.approx(0, abs=1e-9)


def test_the_certificate_names_the_teacher() -> None:
    result = taught("kl()", "original")
    (training,) = result.certificate["trainings"]
    assert training["teacher"] == result.compiled.digests["original"]


# -- students learn --------------------------------------------------------------------------------


def unlabelled(split: str) -> Iterator[Any]:
    for x, y in digits.data(split):
        yield x if split == "train" else (x, y)


def test_samples_without_labels_are_enough_to_follow_a_teacher() -> None:
    big = run(f"recover t {{ epochs = 5; {SGD} }}", net(7, 80)).model
    given: Any = {"models": {"big": big}, "data": lambda split: list(unlabelled(split))}
    result = taught("kl()", more=f"epochs = 5; {SGD}", **given)
    assert epochs(result)[-1].metrics["accuracy"] > 0.85
    assert code(loss="kl() + task()", **given).startswith("F104")


def test_a_student_follows_its_teacher_closer_than_one_that_learns_from_labels() -> None:
    """The teacher is sure, so that without the temperature soft targets say little more than labels
    do.
    """
    big = run(f"recover t {{ epochs = 20; {SGD} }}", net(7, 80)).model
    more = "epochs = 12; optimizer = SGD(lr = 0.05, momentum = 0.9); batch = 100"

    def apart(result: lissom.Result) -> float:
        a, b = (said(m, "test").div(5).softmax(1) for m in (big, result.model))
        return float((a * (a.log() - b.log())).sum(1).mean())

    given: Any = {"more": more, "model": net(5, 12), "models": {"big": big}, "metrics": {}}
    plain = apart(run(f"recover t {{ {more} }}", net(5, 12), metrics={}))
    cold = apart(taught("kl(temperature = 1) + 0.1 * task()", **given))
    warm = apart(taught("kl(temperature = 5) + 0.1 * task()", **given))
    assert warm < 0.5 * cold
    assert warm < 0.2 * plain


# -- what does not fit -----------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.inner(torch.flatten(x, 1))
        return out, out


def one_class() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()


DEEP = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 10)).eval()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another shape": (
        {"loss": "kl()", "models": {"big": one_class()}},
        "F105 the student gives [N, 10], and its teacher [N, 1]",
    ),
    "another shape of logits": (
        {"loss": "logits()", "models": {"big": one_class()}},
        "F105 the student gives [N, 10], and its teacher [N, 1]",
    ),
    "several outputs": ({"loss": "kl()", "models": {"big": Two().eval()}}, "F105 the student and"),
    "several outputs of several": (
        {"loss": "kl()", "teacher": "big + big", "models": {"big": Two().eval()}},
        "F105 teachers that are taken together",
    ),
    "training mode": ({"loss": "kl()", "models": {"big": one_class().train()}}, "M001"),
    "no weight": ({"loss": "kl()", "teacher": "0 * big"}, "F105 `0` is no weight"),
    "a difference": ({"loss": "kl()", "teacher": "big - original"}, "F105 there is no teacher"),
    "nobody": ({"loss": "kl()", "teacher": "probabilities()"}, "F105 there is no teacher"),
    "nobody known": ({"loss": "kl()", "teacher": "3 * bog"}, "F105 there is no teacher `bog`"),
    "known and not": ({"loss": "kl()", "teacher": "probabilities(big, bog)"}, "F105 there is no"),
    "two files": ({"loss": "kl()", "teacher": 'recorded("a", "b")'}, "F105 there is no teacher"),
    "no text": ({"loss": "kl()", "teacher": "recorded(big)"}, "F105 the file of a teacher"),
    "an unknown setting": (
        {"loss": "kl(heat = 4)"},
        "F004 `kl` does not take this: it got an unexpected keyword argument 'heat'",
    ),
    "a builder that fails": ({"loss": "kl()", "models": {"big": lambda: 1 / 0}}, "M021 `big` of"),
    "a builder of nothing": ({"loss": "kl()", "models": {"big": list}}, "M021 `big` of `models`"),
    "cold": ({"loss": "kl(temperature = 0)"}, "F004 `kl` does not take this"),
    "no place": ({"loss": "hint(at = 3)"}, "F004 `hint` names a place"),
    "nowhere": ({"loss": 'hint(at = "nowhere")'}, "U008 the student has nothing at `nowhere`"),
    "nowhere there": (
        {"loss": 'attention(at = "2", of = "9")'},
        "U008 the teacher has nothing at `9`",
    ),
    "two axes": (
        {"loss": 'hint(at = "2", of = "0")', "models": {"big": DEEP}},
        "F105 the student gives [N, 40], and its teacher [N, 3, 6, 6]",
    ),
    "no positions": ({"loss": 'attention(at = "2")'}, "F105 a value of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_teach_is_named(name: str) -> None:
    given, expected = WRONG[name]
    assert code(**given).startswith(expected)


def test_a_model_that_is_wrong_is_named_in_the_message() -> None:
    with pytest.raises(LissomError, match="this is the model `big`"):
        taught("kl()", models={"big": one_class().train()})


def test_words_of_the_language_may_name_what_is_given_in_brackets() -> None:
    text = """pipeline p {
  recover t {
    loss = hint(at = "a", of = "b")
    schedule = step(at = [50%, 75%])
  }
}
"""
    assert format_text(text) == text
    result = run(f"recover t {{ {SGD}; epochs = 2; schedule = step(at = [50%], factor = 10%) }}")
    assert [epoch.rate for epoch in epochs(result)[1:]] == pytest.approx([0.1, 0.01])
    with pytest.raises(LissomError, match="E001"):
        format_text(text.replace('at = "a"', '"a", at'))
