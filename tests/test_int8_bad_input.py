"""What people hand to an integer pipeline by mistake, and what they do with its result: each ends
in an error that names it, in layers that are left with a reason, or in the same numbers.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lissom
from lissom.__main__ import main
from lissom.grammar.diagnostics import Diagnostic, LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime import quantize
from lissom.rewrite.runtime.layers import SHAPES, Int8Layer

PROGRAM = """pipeline p {
  data calib = sample("train", all)
  stage snap { once watch; calibrate calib; once int8_conv2d; once int8_linear }
  stage join { fixpoint { int8_relu; max_pool2d_of_codes; int8_conv2d_to_codes } }
}
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.pool, self.out = nn.MaxPool2d(2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.b(self.pool(torch.relu(self.a(x))))).mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def given(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*(shape or (2, 3, 8, 8)))


def seen() -> list[Tensor]:
    return list(given(24, 3, 8, 8).split(8))


def compiled(model: nn.Module | None = None, data: Any = None, **more: Any) -> Any:
    options = {"inputs": (given(),), "data": seen() if data is None else data, **more}
    return lissom.compile(net() if model is None else model, PROGRAM, **options)


@pytest.fixture(scope="module")
def result() -> Any:
    return compiled()


def layers(model: nn.Module) -> list[Int8Layer]:
    return [module for module in model.modules() if isinstance(module, Int8Layer)]


def said(run: Callable[[], object]) -> Diagnostic:
    with pytest.raises(LissomError) as caught:
        run()
    return caught.value.diagnostics[0]


def left(result: Any) -> dict[str, str]:
    """Why layers stayed in numbers, by their names."""
    rules = ("int8_conv2d", "int8_linear")
    return {e.site: e.reason for e in result.journal.of(Refused) if e.rule in rules}


# -- data ------------------------------------------------------------------------------------------


def test_no_data(result: Any) -> None:
    found = said(lambda: lissom.compile(net(), PROGRAM, inputs=(given(),)))
    assert (found.code, found.labels[0].text) == ("D002", "calibrates here")
    assert "pass `data=`" in found.helps[0]


EMPTY: dict[str, Callable[[], Any]] = {
    "a list": list,
    "an iterator that ended": lambda: iter(()),
    "a split": lambda: lambda split: iter(()),
    "a loader": lambda: DataLoader(TensorDataset(torch.zeros(0, 3, 8, 8))),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_data_that_yield_nothing(kind: str) -> None:
    found = said(lambda: compiled(data=EMPTY[kind]()))
    assert (found.code, found.message) == ("D002", "`calib` holds no batch")
    assert "yields its batches only once" in found.helps[0]


def test_an_iterator_that_two_samples_draw_from() -> None:
    text = PROGRAM.replace("all)", '8)\n  data other = sample("train", 8)')
    text = text.replace("calibrate calib", "calibrate other")
    found, wanted = (
        lissom.compile(net(), text, inputs=(given(),), data=data) for data in (iter(seen()), seen())
    )
    assert torch.equal(found.model(given()), wanted.model(given()))


def test_an_empty_batch_among_others_counts_for_nothing(result: Any) -> None:
    found = compiled(data=[seen()[0], torch.zeros(0, 3, 8, 8), *seen()[1:]])
    assert torch.equal(found.model(given()), result.model(given()))


def test_empty_batches_alone_leave_everything() -> None:
    found = compiled(data=[torch.zeros(0, 3, 8, 8)])
    assert layers(found.model) == []
    assert left(found)["a"] == "no calibration data reached what a reads"
    assert any(note.code == "W702" for note in found.notes)


def test_data_that_reach_no_layer() -> None:
    class Seldom(Net):
        """`b` reads no sample."""

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).mean((2, 3)).sum(1) + self.b(self.a(x[:0])).sum()

    found = compiled(Seldom().eval())
    assert "no calibration data reached what b reads" in left(found).values()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_in_the_data(bad: float) -> None:
    data = seen()
    data[1][3, 1, 2, 2] = bad
    found = compiled(data=data)
    assert layers(found.model) == []
    assert "the value is not finite on the data" in left(found)["a"]


@pytest.mark.parametrize("value", [0.7, -3.0])
def test_an_activation_that_is_constant(value: float) -> None:
    data = [torch.full((4, 3, 8, 8), value)]
    found = compiled(data=data)
    assert len(layers(found.model)) == 3
    wanted = net()(data[0])
    assert (found.model(data[0]) - wanted).norm() < 0.02 * wanted.norm()


def test_a_range_of_zero() -> None:
    found = compiled(data=[torch.zeros(4, 3, 8, 8)])
    assert left(found) == {"a": "`affine`: all numbers are zero"}


OTHER: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "channels": (lambda x: x[:, :1], "to have 3 channels, but got 1 channels"),
    "float64": (lambda x: x.double(), "double"),
    "bfloat16": (lambda x: x.bfloat16(), "BFloat16"),
    "bytes": (lambda x: x.to(torch.uint8), "unsigned char"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_data_that_the_model_does_not_take(kind: str) -> None:
    change, why = OTHER[kind]
    found = said(lambda: compiled(data=[change(x) for x in seen()]))
    assert (found.code, found.message) == ("V108", "the model cannot be run on the data")
    assert "a (test_int8_bad_input.py" in found.labels[0].where
    assert why in found.notes[0]
    assert "give inputs and data that the model takes" in found.helps[0]


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_another_type_are_left(dtype: torch.dtype) -> None:
    data = [x.to(dtype) for x in seen()]
    found = compiled(net().to(dtype), data=data, inputs=(data[0][:2],))
    assert layers(found.model) == []
    name = str(dtype).removeprefix("torch.")
    assert set(left(found).values()) == {
        f"integer kernels give float32, the model computes in {name}"
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weights_that_are_no_numbers(name: str, bad: float) -> None:
    """A bias of nan is no mistake of the rule."""
    model = net()
    with torch.no_grad():
        getattr(model.b, name)[0] = bad
    found = compiled(model)
    assert len(layers(found.model)) == 1
    wanted = {"weight": "infinite or nan", "bias": "nan against 5%"}[name]
    assert wanted in left(found)["b"]
    assert "not finite on the data" in left(found)["out"]


def test_a_row_of_zeros() -> None:
    model = net()
    with torch.no_grad():
        model.a.weight[2] = 0
        model.b.weight.zero_()
    found = compiled(model)
    a, b, _ = layers(found.model)
    assert (a.weight[2].eq(0).all(), b.weight.eq(0).all(), a.scale[2] > 0) == (True,) * 3
    assert (found.model(given()) - model(given())).norm() < 0.02 * model(given()).norm()


def test_an_integer_model_again(result: Any) -> None:
    """By the same program, and by another one."""
    other = "pipeline p { stage s { fixpoint { drop_relu_of_codes; fold_bn } } }"
    again = compiled(result.model)
    more = lissom.compile(result.model, other, inputs=(given(),))
    for found in (again, more):
        assert found.applied == []
        assert torch.equal(found.model(given()), result.model(given()))
        # What a layer packs is no state: copies are made without it.
        assert {note.code for note in found.notes} <= {"W702", "W706"}


# -- what becomes of a result ----------------------------------------------------------------------


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_a_folder(folder: Path) -> nn.Module:
    compiled().save(folder, check_reload=False)
    return saved(lissom.load(folder))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved,
    "torch.export": lambda model: torch.export.export(model, (given(),)).module(),
    "torch.compile": lambda model: torch.compile(model, backend="aot_eager", fullgraph=True),
    "half": lambda model: copy.deepcopy(model).half(),
    "half and back": lambda model: copy.deepcopy(model).half().float(),
    "bfloat16": lambda model: copy.deepcopy(model).to(torch.bfloat16),
    "another type for all": lambda model: copy.deepcopy(model).type(torch.float32),
    "channels_last": lambda model: copy.deepcopy(model).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
def test_copies_compute_the_same(result: Any, kind: str) -> None:
    """Codes stay int8, and scales float32: 1e-5 is another number in half precision."""
    made = COPIES[kind](result.model)
    x = given()
    assert torch.equal(made(x), result.model(x))
    held = {t.dtype for t in made.state_dict().values()}
    assert held == {torch.int8, torch.float32}


@pytest.mark.parametrize("kind", ["deepcopy", "pickle", "torch.save", "half", "bfloat16"])
def test_layers_that_find_their_scales_are_copied_as_well(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 5)).eval()
    text = 'pipeline p { data calib = sample("train", all)\nstage s { once int8_linear_dynamic } }'
    x = given(3, 7, 16)
    small = lissom.compile(model, text, inputs=(x,), data=[x]).model
    assert len(layers(small)) == 2
    made = COPIES[kind](small)
    assert torch.equal(made(x), small(x))
    assert made(x[:0]).shape == (0, 7, 5)
    bad = x.index_fill(1, torch.tensor([4]), float("nan"))
    assert made(bad).isnan().any(-1).tolist() == [[at == 4 for at in range(7)]] * 3


def test_a_pickle_keeps_the_calls_of_a_graph(result: Any, tmp_path: Path) -> None:
    """torch.fx traces the code when it reads one: what makes codes must not be taken apart."""
    model = through_a_folder(tmp_path / "small")
    counted = [n.target for n in model.graph.nodes].count(quantize)
    assert counted == [n.target for n in result.model.graph.nodes].count(quantize) > 0
    assert torch.equal(model(given()), result.model(given()))
    assert torch.equal(model(given(5, 3, 8, 8)), result.model(given(5, 3, 8, 8)))


def test_a_graph_that_may_change_marks_no_function_of_ours(result: Any) -> None:
    """torch remembers for good what is marked for pickling, by the name that it has in a graph."""
    held = [n.meta.get("is_wrapped") for n in result.model.graph.nodes if n.target is quantize]
    captured = capture(result.model, (given(),)).module.graph.nodes
    assert held == [True] * len(held) != []
    assert [n.meta.get("is_wrapped") for n in captured if n.target is quantize] == [None] * len(
        held
    )


def test_in_float64_it_is_real_arithmetic(result: Any) -> None:
    wide = copy.deepcopy(result.model).double()
    assert (wide(given()) - result.model(given())).abs().max() < 1e-5
    assert torch.equal(wide.float()(given()), result.model(given()))


def test_without_memory_it_has_shapes(result: Any) -> None:
    model = copy.deepcopy(result.model).to("meta")
    assert model(given().to("meta")).shape == (2, 5)
    with pytest.raises(ValueError, match="codes lie on cpu, the weights of the layer on meta"):
        model(given())


def test_its_state_is_loaded_and_that_of_the_float_model_is_not(result: Any) -> None:
    model = copy.deepcopy(result.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(result.model.state_dict())
    assert torch.equal(model(given()), result.model(given()))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(net().state_dict())
    for assign in (False, True):
        wrong = {name: value.float() * 1.7 for name, value in model.state_dict().items()}
        with pytest.raises(RuntimeError, match=r"weight` is torch.int8, and torch.float32 was"):
            model.load_state_dict(wrong, assign=assign)


def test_modes_of_torch_change_no_bit(result: Any) -> None:
    x, wanted = given(), result.model(given())
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(result.model)(x), wanted)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(copy.deepcopy(result.model)(x), wanted)
    assert torch.equal(copy.deepcopy(result.model)(x.requires_grad_()), wanted)


def test_batches_without_a_sample(result: Any) -> None:
    assert result.model(given()[:0]).shape == (0, 5)
    assert all("no samples" in str(layer.ran) for layer in layers(result.model))
    assert torch.equal(result.model(given()), compiled().model(given()))


def test_threads_share_a_model(result: Any) -> None:
    """Each with shapes of its own: kernels are chosen, and those of other shapes dropped, at the
    same time.
    """
    model = copy.deepcopy(result.model)
    inputs = [given(1 + at % 3, 3, 8, 8 + at) for at in range(SHAPES + 2)]
    found: list[Any] = [None] * len(inputs)
    together = threading.Barrier(len(inputs))

    def run(at: int) -> None:
        together.wait()
        found[at] = [model(inputs[at]) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, outputs in zip(inputs, found, strict=True):
        assert all(torch.equal(y, result.model(x)) for y in outputs)


# -- on the command line ---------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()

def inputs():
    return (torch.randn(2, 3, 8, 8),)

def data(split):
    return {data}
"""


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ("[]", "D002", "`calib` holds no batch"),
        ("[torch.randn(4, 1, 8, 8)]", "V108", "expected input[4, 1, 8, 8] to have 3 channels"),
        ("[torch.randn(4, 3, 8, 8).double()]", "V108", "Input type (double)"),
    ],
)
def test_apply_says_what_is_wrong_with_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, code: str, words: str
) -> None:
    (tmp_path / "model.py").write_text(MODEL.replace("{data}", data))
    (tmp_path / "p.lissom").write_text(PROGRAM)
    target, program = f"{tmp_path}/model.py:build", str(tmp_path / "p.lissom")
    assert main(["apply", target, program, "-o", str(tmp_path / "out")]) != 0
    told = "".join(capsys.readouterr())
    assert f"error[{code}]" in told
    assert words in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
