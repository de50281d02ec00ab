"""The ops of passes/ops_int8.lissom: what they are read from, what they give."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lissom.grammar.checks.check import check
from lissom.grammar.library.vocabulary import library
from lissom.grammar.text.parse import parse
from lissom.rewrite import runtime
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.graph.emit import emit
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.graph.own import declared
from lissom.rewrite.ops.spec import TensorSpec
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.runtime import (
    dequantize,
    fake_quantize,
    int8_interpolate,
    int8_max_pool,
    quantize,
)

from .test_int8_layers import CONVS, codes_of, layer_of
from .traced import described

LIBRARY = Vocabulary.library()
ELSEWHERE = ("pool", "interpolate", "rows", "lstm", "embedding")
"""Of pooling and resizing further down, of others in files of their own."""

INTEGER = [
    name
    for name in LIBRARY.names()
    if name.startswith("int8_") and not any(word in name for word in ELSEWHERE)
]
SHAPES = {"conv1d": (4, 2, 3), "conv2d": (4, 2, 3, 3), "conv3d": (4, 2, 2, 2, 2), "linear": (4, 5)}
KINDS = {f"conv{n}d": kind for n, kind in CONVS.items()} | {"linear": runtime.Int8Linear}


def sample(name: str) -> tuple[Any, Tensor]:
    """A layer that an op is read from, and codes for it."""
    torch.manual_seed(0)
    base = name.removeprefix("int8_").removesuffix("_codes")
    shape = SHAPES[base]
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    geometry = {} if base == "linear" else {"groups": 2, "stride": 2, "padding": 1}
    stored = {"output_scale": 0.25, "output_zero": 9} if name.endswith("_codes") else {}
    tensors = weight, torch.rand(4), torch.randn(4)
    settings = {"zero": 7, "activation": "relu", **geometry, **stored}
    layer = layer_of(KINDS[base], *tensors, **settings)
    sizes = (2, 5) if base == "linear" else (2, 4, *(5,) * (len(shape) - 2))
    return layer, torch.randint(0, 256, sizes, dtype=torch.uint8)


def view_of(layer: nn.Module, *inputs: Tensor) -> tuple[GraphView, fx.Node]:
    graph = fx.Graph()
    given = tuple(graph.placeholder(f"x{n}") for n in range(len(inputs)))
    node = graph.call_module("layer", given)
    graph.output(node)
    root = fx.GraphModule(nn.ModuleDict({"layer": layer}), graph)
    described(root, *inputs)
    return GraphView(root), node


@pytest.mark.parametrize("name", INTEGER)
def test_a_layer_is_read_and_written_anew(name: str) -> None:
    layer, codes = sample(name)
    view, node = view_of(layer, codes)
    call = view.call(node)
    assert call is not None, view.why_opaque(node)
    assert call.op.name == name
    assert call.op.result_specs(call) == (node.meta["val"],)
    params = {param: call.tensor(param) for param in call.params}
    inputs = (codes, None)
    new = emit(call.op, inputs, params, call.attrs, layer)
    assert type(new.layer) is type(layer)
    assert new.layer is not layer
    assert torch.equal(new.run(*inputs), layer(codes))
    names = [spec.name for spec in call.op.inputs]
    given = dict(zip(names, inputs, strict=True))
    assert torch.equal(call.op.run(given, params, call.attrs), layer(codes))


@pytest.mark.parametrize("name", INTEGER)
def test_what_is_added_is_an_input(name: str) -> None:
    layer, codes = sample(name)
    other = codes_of(random.Random(0), *layer(codes).shape)
    view, node = view_of(layer, codes, other)
    call = view.call(node)
    assert call is not None, view.why_opaque(node)
    assert call.op.name == name
    assert len(call.inputs) == 2


@pytest.mark.parametrize("name", INTEGER)
def test_multiplications_count_as_those_of_the_layer_with_numbers(name: str) -> None:
    layer, codes = sample(name)
    view, node = view_of(layer, codes)
    call = view.call(node)
    assert call is not None
    each = layer.weight[0].numel()
    assert call.op.macs(call.op.bind(call.shapes(), call.attrs)) == layer(codes).numel() * each


class Coded(nn.Module):
    """Written by hand with what `runtime/` has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, _ = sample("int8_linear_codes")

    def forward(self, x: Tensor) -> Tensor:
        codes = self.layer(quantize(x, 0.02, 128))
        y = dequantize(codes, 0.25, 9)
        return fake_quantize(y, 0.5, 3)


def test_a_model_that_calls_them_is_captured_as_ops() -> None:
    x = torch.randn(3, 5)
    with declared(LIBRARY):
        found = capture(Coded().eval(), (x,)).module
    view = GraphView(found)
    calls = [view.call(node) for node in found.graph.nodes if node.op.startswith("call_")]
    names = [call.op.name for call in calls if call is not None]
    assert names == ["quantize", "int8_linear_codes", "dequantize", "fake_quantize"]
    assert torch.equal(found(x), Coded()(x))


POOLED = [(1, (4, 11)), (2, (3, 10, 9)), (3, (2, 7, 6, 8))]


@pytest.mark.parametrize(("axes", "shape"), POOLED)
def test_the_largest_code_is_that_of_the_largest_number(axes: int, shape: tuple[int, ...]) -> None:
    draw, tried = random.Random(axes), 0
    pool = (nn.functional.max_pool1d, nn.functional.max_pool2d, nn.functional.max_pool3d)[axes - 1]
    while tried < 60:
        kernel = tuple(draw.choice((1, 2, 3)) for _ in range(axes))
        given = {
            "kernel_size": kernel,
            "stride": tuple(draw.choice((1, 2, 3)) for _ in range(axes)),
            "padding": tuple(draw.randrange(size // 2 + 1) for size in kernel),
            "dilation": tuple(draw.choice((1, 2)) for _ in range(axes)),
            "ceil_mode": draw.choice((False, True)),
        }
        codes = codes_of(draw, 2, *shape)
        found = int8_max_pool(codes, **given, axes=axes)
        assert found.dtype == torch.uint8
        assert torch.equal(found, pool(codes.float(), **given).to(torch.uint8)), given
        tried += 1


@pytest.mark.parametrize(("axes", "shape"), POOLED)
def test_codes_are_repeated_as_numbers_are(axes: int, shape: tuple[int, ...]) -> None:
    codes = codes_of(random.Random(axes), 2, *shape)
    for given in ({"scale_factor": 2}, {"scale_factor": 1.7}, {"size": (5,) * axes}):
        found = int8_interpolate(codes, **given)
        assert torch.equal(found, nn.functional.interpolate(codes.float(), **given).byte())


def test_pooling_keeps_the_format_and_knows_its_defaults() -> None:
    codes = codes_of(random.Random(0), 2, 5, 8, 8)
    last = codes.contiguous(memory_format=torch.channels_last)
    found = int8_max_pool(last, 3, 2, 1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, int8_max_pool(codes, (3, 3), (2, 2), (1, 1)))
    assert torch.equal(int8_max_pool(codes, 2), int8_max_pool(codes, 2, stride=2))
    with pytest.raises(ValueError, match="more than half"):
        int8_max_pool(codes, 2, padding=2)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan")])
def test_a_scale_is_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        quantize(torch.ones(2), scale, 0)


@pytest.mark.parametrize(
    ("line", "specs"),
    [
        ("op code(x: f[N]) -> uint8[N] { meaning torch.abs(input = x) }", [torch.uint8]),
        ("op code(x: int8[N]) -> f[N] { meaning torch.abs(input = x) }", None),
    ],
)
def test_a_declaration_names_a_type(line: str, specs: Any) -> None:
    file = parse(line, "own.lissom")
    assert check(file, library()) == []
    op = Vocabulary.from_files([file])["code"]
    given = {"x": TensorSpec((3,), torch.int8 if specs is None else torch.float32)}
    found = [spec.dtype for spec in op.specs(given, {}, {})]
    assert found == (specs or [torch.int8])  # no operand says what f is: the meaning runs


def test_a_type_that_torch_has_not_is_refused() -> None:
    file = parse("op code(x: uint3[N]) -> f[N] { meaning torch.abs(input = x) }", "own.lissom")
    (error,) = check(file, library())
    assert error.code == "T003"
    assert "`uint3` is not a type" in error.message
