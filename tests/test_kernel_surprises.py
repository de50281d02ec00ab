"""docs/surprises.md: what kernels, quantizers and runtimes do that nobody expects is right here."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime import Int8Conv2d, Int8Linear, fake_quantize, kernels, quantize
from lissom.rewrite.runtime.layers import Int8Layer

from .support import Fn, library

HERE = Path(__file__).parent
ROWS = re.compile(r"^\| (.+) \| (.+) \| (.+) \|$", re.M)
TESTS = re.compile(r"`(\w+\.py)::(\w+)`")


# -- the page --------------------------------------------------------------------------------------


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((HERE / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def rows() -> list[tuple[str, str, str]]:
    page = (HERE.parent / "docs" / "surprises.md").read_text("utf-8")
    found = [(m[1], m[2], m[3]) for m in ROWS.finditer(page)]
    return [row for row in found if row[2] not in ("test", "---")]


def test_each_row_of_the_page_has_tests_that_exist() -> None:
    assert len(rows()) > 30
    for surprise, _, tests in rows():
        named = TESTS.findall(tests)
        assert named, f"without a test: {surprise}"
        for file, name in named:
            assert name in functions(file), f"{file} has no {name}"


def test_each_test_of_this_file_stands_in_the_page() -> None:
    listed = {name for row in rows() for _, name in TESTS.findall(row[2])}
    own = {name for name in functions("test_kernel_surprises.py") if name.startswith("test_")}
    assert {name for name in own - listed if not name.startswith("test_each_")} == set()


# -- layers ----------------------------------------------------------------------------------------


def drawn(layer: Any) -> Any:
    """The layer with numbers in it."""
    torch.manual_seed(0)
    layer.weight.data.random_(-127, 128)
    layer.scale.data.uniform_(0.001, 0.003)
    return layer


def codes(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


LAYERS: list[tuple[Any, Tensor]] = [
    (lambda: drawn(Int8Linear(12, 8, zero=7)), codes(64, 12)),
    (lambda: drawn(Int8Conv2d(4, 8, 3, zero=7)), codes(64, 4, 5, 5)),
]


@pytest.mark.parametrize(("make", "given"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.int64])
def test_codes_of_another_type_are_refused(make: Any, given: Tensor, dtype: torch.dtype) -> None:
    """Whether a kernel has been chosen or not: that of linear layers takes int8 as well."""
    layer = make()
    for _ in range(2):
        with pytest.raises(TypeError, match="codes are uint8, these are"):
            layer(given.to(dtype))
        y = layer(given)
    with pytest.raises(TypeError, match="codes are uint8, these are"):
        layer(given, y.to(dtype))


@pytest.mark.parametrize(("make", "given"), LAYERS)
def test_a_sample_alone_has_the_bits_that_it_has_in_a_batch(make: Any, given: Tensor) -> None:
    """As numbers: kernels that get the scales apart round in an order that follows the batch."""
    layer = make()
    together = layer(given)
    assert all(torch.equal(layer(given[at : at + 1])[0], together[at]) for at in (0, 17, 63))


def test_the_lowest_weight_counts_as_128(monkeypatch: pytest.MonkeyPatch) -> None:
    """The magnitude of -128 in int8 is -128."""
    monkeypatch.setattr(kernels, "operators", lambda: {"any": 1})
    monkeypatch.setattr(kernels, "saturates", lambda: True)
    weight = torch.full((8, 12), -128, dtype=torch.int8)
    assert "beyond 64" in str(kernels.why_none(weight, torch.ones(8), codes(2, 12)))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("weight", torch.float32), ("weight", torch.uint8), ("scale", torch.float16)],
)
def test_tensors_of_another_type_are_not_loaded(name: str, dtype: torch.dtype) -> None:
    """torch converts them by value, also where all names must match."""
    model = nn.Sequential(drawn(Int8Linear(12, 8)))
    held = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"`0.{name}` is .*, and {dtype} was given"):
        model.load_state_dict({**held, f"0.{name}": held[f"0.{name}"].to(dtype)})
    assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items())
    model.load_state_dict({**held, "0.scale": held["0.scale"].double()})
    assert torch.equal(model[0].scale, held["0.scale"])


@pytest.mark.parametrize("zero", [0, 13, 128, 255])
def test_what_is_trained_and_measured_is_what_runs(zero: int) -> None:
    """On ties: torch's own fake quantization rounds before it adds the zero point."""
    ties = (torch.arange(-300, 300) + 0.5) * 0.25
    stored = (quantize(ties, 0.25, zero).double() - zero) * 0.25
    assert torch.equal(fake_quantize(ties, 0.25, zero).double(), stored)
    assert torch.equal(fake_quantize(ties.double(), 0.25, zero), stored)
    theirs = torch.fake_quantize_per_tensor_affine(ties, 0.25, zero, 0, 255)
    assert torch.equal(theirs.double(), stored) == (zero % 2 == 0)


# -- whole models ----------------------------------------------------------------------------------

STAGES = """
  stage snap { once watch; calibrate calib; once int8_conv2d; once int8_linear }
  stage join { fixpoint { int8_relu; int8_conv2d_to_codes; int8_linear_to_codes } }
"""


def compiled(model: nn.Module, data: list[Tensor], stages: str = STAGES) -> Any:
    text = (
        f'{library("quant", "codes")}\npipeline p {{ data calib = sample("train", all)\n{stages} }}'
    )
    return lissom.compile(model.eval(), text, inputs=(data[0][:2],), data=data)


def integer_layers(model: nn.Module) -> list[Int8Layer]:
    return [module for module in model.modules() if isinstance(module, Int8Layer)]


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def images() -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.randn(8, 3, 6, 6) for _ in range(2)]


def test_ties_of_an_odd_zero_point_are_those_of_the_kernel() -> None:
    """Codes 0 ... 255 stand for -101 ... 154."""
    model = Fn(lambda m, x: m.b(x), b=nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model.b.weight.copy_(torch.eye(4))
    result = compiled(model, [torch.tensor([[-101.0, 154, 0, 0], [7, 7, 7, 7]])])
    assert integer_layers(result.model)[0].zero == 101
    found = result.model(torch.tensor([[0.5, 1.5, 2.5, -0.5]]))
    assert found.round().tolist() == [[1, 1, 3, -1]]


def test_a_view_of_what_a_layer_gives() -> None:
    """Kernels of images answer in channels_last, of which `view` takes nothing apart."""
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 8, 1), "out": nn.Linear(128, 5)}
    inside = Fn(lambda m, x: m.out(m.b(torch.relu(m.a(x))).view(x.size(0), -1)), **layers)
    at_the_end = Fn(lambda m, x: {"one": m.b(h := torch.relu(m.a(x))), "more": [h + 1]}, **layers)
    x = images()[0]
    result = compiled(inside, images())
    assert len(integer_layers(result.model)) == 3
    assert apart(result.model(x), inside(x)) < 0.05
    given = compiled(at_the_end, images()).model(x)
    assert [y.view(8, 128).shape for y in (given["one"], *given["more"])] == [(8, 128)] * 2


def written_through(m: Any, x: Tensor) -> Tensor:
    y = m.b(m.a(x))
    y.view(x.size(0), -1).mul_(3)
    return y


def written_beside(m: Any, x: Tensor) -> Tensor:
    y = torch.relu(m.b(m.a(x)))
    parts = y.reshape(x.size(0), -1)
    y.mul_(3)
    return parts


def written_alone(m: Any, x: Tensor) -> Tensor:
    y = torch.relu_(m.b(torch.relu_(m.a(x))))
    return y.view(x.size(0), -1).mul_(3)


@pytest.mark.parametrize(
    ("run", "count"), [(written_through, 0), (written_beside, 0), (written_alone, 2)]
)
def test_what_is_written_through_a_view(run: Any, count: int) -> None:
    """One memory would become two: another layout is handed on by the float layers behind."""
    torch.manual_seed(0)
    model = Fn(run, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1))
    x = images()[0]
    result = compiled(model, images())
    assert len(integer_layers(result.model)) == count
    assert apart(result.model(x), model(x)) < 0.05
    refused = [e for e in result.journal.of(Refused) if e.code == "R006"]
    assert len(refused) == 2 - count
    assert all("computes in place" in event.reason for event in refused)


def test_what_has_no_integer_kernel_stays_in_numbers() -> None:
    torch.manual_seed(0)
    layers = {"a": nn.ConvTranspose2d(3, 8, 3), "b": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(4, 4, 1)}
    model = Fn(lambda m, x: m.c(nn.functional.gelu(m.b(m.a(x)))), **layers)
    result = compiled(model, images())
    kinds = [type(module) for module in result.model.modules()]
    assert (kinds.count(Int8Conv2d), kinds.count(nn.ConvTranspose2d)) == (2, 1)
    assert "gelu" in result.model.code
    assert [layer.activation for layer in integer_layers(result.model)] == ["none"] * 2
    assert apart(result.model(images()[0]), model(images()[0])) < 0.05


def test_few_bits_are_stored_as_int8(tmp_path: Path) -> None:
    """Tensors of int4 can be neither copied nor saved."""
    torch.manual_seed(0)
    x = torch.randn(16, 12)
    stages = STAGES.replace("once int8_linear", "once int8_linear(bits = 6)")
    result = compiled(Fn(lambda m, x: m.b(x), b=nn.Linear(12, 8)), [x], stages)
    (layer,) = integer_layers(result.model)
    assert (layer.weight.dtype, layer.weight.abs().max()) == (torch.int8, 31)
    result.save(tmp_path / "few", check_reload=False)
    assert torch.equal(lissom.load(tmp_path / "few")(x), result.model(x))


def test_an_encoder_layer_shows_observers_all_that_it_computes() -> None:
    """torch runs one as a single kernel, inside of which nothing would be seen."""
    assert torch.backends.mha.get_fastpath_enabled()
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.Sequential(encoder, nn.Linear(16, 4))
    data = [torch.randn(6, 5, 16) for _ in range(2)]
    result = compiled(model, data)
    assert len(integer_layers(result.model)) == 3
    assert "int8_linear" not in {event.rule for event in result.journal.of(Refused)}
    assert apart(result.model(data[0]), model(data[0])) < 0.05


def test_a_row_that_is_masked_entirely_is_said_to_have_no_numbers() -> None:
    """torch's own attention gives zeros there, softmax by hand nan."""
    torch.manual_seed(0)
    hidden = torch.eye(5, dtype=torch.bool)
    hidden[3] = True

    def attend(m: Any, x: Tensor) -> Tensor:
        scores = (m.a(x) @ x.transpose(1, 2)).masked_fill(hidden, -torch.inf)
        return m.b(scores.softmax(-1) @ x)

    model = Fn(attend, a=nn.Linear(16, 16), b=nn.Linear(16, 4)).eval()
    data = [torch.randn(6, 5, 16)]
    result = compiled(model, data)
    assert len(integer_layers(result.model)) == 1
    (left,) = {e.reason for e in result.journal.of(Refused) if e.rule == "int8_linear"}
    assert "not finite on the data" in left
    assert result.model(data[0]).isnan().any(-1).tolist() == [[False] * 3 + [True, False]] * 6


def test_a_result_shares_no_memory_with_an_exported_program() -> None:
    torch.manual_seed(0)
    exported = torch.export.export(nn.Linear(12, 8).eval(), (torch.randn(2, 12),))
    x = torch.randn(2, 12)
    wanted = exported.module()(x)
    text = "pipeline p { stage s { fixpoint { drop_dropout } } }"
    result = lissom.compile(exported.module(), text, inputs=(x,))
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.zero_()
    assert torch.equal(exported.module()(x), wanted)


@pytest.mark.parametrize("rule", ["int8_linear", "int8_linear_dynamic"])
def test_no_gradient_goes_through_codes(rule: str) -> None:
    """It ends there, and training says so: nothing before an integer layer would learn."""
    model = Fn(
        lambda m, x: m.c(m.b(m.a(x))), a=nn.Linear(12, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 4)
    )
    stages = f'stage s {{ once watch; calibrate calib; once {rule} at "b" }}'
    torch.manual_seed(0)
    mixed = compiled(model, [torch.randn(16, 12)], stages).model
    assert len(integer_layers(mixed)) == 1
    with pytest.warns(UserWarning, match="nothing before them gets a gradient"):
        mixed.train()
    x = torch.randn(2, 12, requires_grad=True)
    mixed(x).sum().backward()
    learns = {name for name, p in mixed.named_parameters() if p.grad is not None}
    assert learns == {"c.weight", "c.bias"}
    assert x.grad is None
