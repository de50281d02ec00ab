"""Integers from the input to the classifier: `passes/codes.lissom` on whole graphs.

The graphs are as rules make them that turn layers into integer layers: each layer reads numbers
that are quantized right before it, and what is added to its result is stored as codes.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import lissom
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.runtime import Int8Conv2d, Int8Linear, dequantize, int8, quantize
from lissom.rewrite.runtime.layers import Int8Layer

from .support import library

RULES = "; ".join(re.findall(r"^exact rule (\w+)", library("codes"), re.MULTILINE))
PROGRAM = f"{library('codes')}\npipeline p {{ stage join {{ fixpoint {{ {RULES} }} }} }}"

A, B, C, D, E = (0.05, 100), (0.03, 0), (0.04, 0), (0.06, 121), (0.025, 0)


def filled(layer: Int8Layer) -> Int8Layer:
    """With weights at which results are about one."""
    layer.weight.random_(-127, 128)
    layer.scale.uniform_(0.5, 1.5).mul_(0.03 / 73 / layer.weight[0].numel() ** 0.5)
    if layer.bias is not None:
        layer.bias.uniform_(-0.3, 0.3)
    return layer


def conv(inputs: int, outputs: int, kernel: int = 3, **settings: Any) -> Int8Layer:
    return filled(Int8Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings))


def stored(x: Tensor, grid: tuple[float, int]) -> Tensor:
    """Numbers that have codes."""
    return dequantize(quantize(x, *grid), *grid)


def joined(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, list[str]]:
    """What the rules make of a model, and its ops in their order."""
    result = lissom.compile(model.eval(), PROGRAM, inputs=(x,))
    view = GraphView(result.model)
    calls = (view.call(node) for node in result.model.graph.nodes)
    return result.model, [call.op.name for call in calls if call is not None]


class Residual(nn.Module):
    """A stem with pooling, a block whose input is added, one with a convolution beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = conv(3, 8, 5, stride=2, zero=A[1])
        self.first, self.second = conv(8, 8, zero=B[1]), conv(8, 8, zero=C[1])
        self.third, self.fourth = conv(8, 12, stride=2, zero=C[1]), conv(12, 12, zero=E[1])
        self.beside = conv(8, 12, 1, stride=2, zero=C[1])
        self.out = filled(Int8Linear(12, 5, zero=E[1]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.stem(quantize(x, *A))), 3, 2, 1)
        h = torch.relu(self.first(quantize(x, *B)))
        x = torch.relu(self.second(quantize(h, *C)) + stored(x, B))
        h = torch.relu(self.third(quantize(x, *C)))
        h = self.fourth(quantize(h, *E))
        x = torch.relu(stored(self.beside(quantize(x, *C)), D) + h)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.out(quantize(x, *E))


def test_a_residual_network_is_integer_from_the_first_layer_to_the_last() -> None:
    model, x = Residual(), torch.randn(2, 3, 21, 21)
    after, ops = joined(model, x)
    assert ops == [
        "quantize", "int8_conv2d_codes", "int8_max_pool2d",
        "int8_conv2d_codes", "int8_conv2d_codes",
        "int8_conv2d_codes", "int8_conv2d_codes", "int8_conv2d",
        "adaptive_avg_pool2d", "quantize", "flatten", "int8_linear",
    ]  # fmt: skip
    layers = [m for m in after.modules() if isinstance(m, Int8Layer)]
    added = [(m.other_scale, m.other_zero) for m in layers if m.other_scale != 1]
    assert added == [(int8.single(B[0]), B[1]), (int8.single(D[0]), D[1])]
    assert [m.activation for m in layers].count("relu") == 5
    # A sum rounds once in the layer, twice before it: some code may be another.
    assert (after(x) - model(x)).norm() < 1e-3 * model(x).norm()


class Dense(nn.Module):
    """What layers give stands beside what they read; activations of mobile networks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = conv(3, 4, zero=A[1]), conv(4, 6, zero=B[1])
        self.third, self.out = (
            conv(10, 2, stride=2, zero=B[1]),
            filled(Int8Linear(72, 5, zero=A[1])),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(quantize(x, *A)))
        h = F.hardswish(self.second(quantize(x, *B)))
        x = torch.relu(torch.cat([x, h], 1))
        x = F.pad(self.third(quantize(x, *B)), (0, 1, 1, 0)).contiguous()
        return self.out(quantize(x.flatten(1), *A))


def test_what_stands_side_by_side_does_so_in_codes() -> None:
    model, x = Dense(), torch.randn(2, 3, 9, 9)
    after, ops = joined(model, x)
    assert ops == [
        "quantize", "int8_conv2d_codes", "int8_conv2d_codes", "cat", "int8_conv2d_codes",
        "pad", "contiguous", "flatten", "int8_linear",
    ]  # fmt: skip
    activations = [m.activation for m in after.modules() if isinstance(m, Int8Layer)]
    assert sorted(activations) == ["hardswish", "none", "none", "relu6"]
    assert (after(x) - model(x)).norm() < 1e-3 * model(x).norm()


class Tokens(nn.Module):
    """Patches as a sequence, heads, and numbers where an activation needs them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = filled(Int8Conv2d(3, 8, 4, stride=4, zero=A[1]))
        self.heads, self.wide = (
            filled(Int8Linear(8, 8, zero=D[1])),
            filled(Int8Linear(4, 6, zero=A[1])),
        )
        self.out = filled(Int8Linear(6, 5, zero=D[1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(quantize(x, *A)).flatten(2).transpose(1, 2)
        h = self.heads(quantize(x, *D))
        h = h.unflatten(-1, (2, 4)).permute(0, 2, 1, 3)
        h = F.gelu(self.wide(quantize(h, *A)))
        return self.out(quantize(h[:, 0], *D))


def test_what_only_moves_moves_in_codes() -> None:
    model, x = Tokens(), torch.randn(2, 3, 12, 12)
    after, ops = joined(model, x)
    assert ops == [
        "quantize", "int8_conv2d_codes", "flatten", "transpose",
        "int8_linear_codes", "unflatten", "permute", "int8_linear",
        "gelu", "quantize", "getitem", "int8_linear",
    ]  # fmt: skip
    assert torch.equal(after(x), model(x))


def test_values_that_are_read_as_numbers_stay_numbers() -> None:
    """One reader takes codes, another one numbers."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.out = conv(3, 4, zero=A[1]), conv(4, 4, zero=B[1])

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(quantize(x, *A)))
            return self.out(quantize(x, *B)) * torch.sigmoid(x)

    model, x = Both(), torch.randn(2, 3, 9, 9)
    after, ops = joined(model, x)
    assert ops == ["quantize", "int8_conv2d", "quantize", "int8_conv2d", "sigmoid", "mul"]
    assert torch.equal(after(x), model(x))


class Numbers(nn.Module):
    """As `Residual`, of layers with numbers; one activation overwrites what each layer gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool = nn.Conv2d(3, 8, 5, 2, 2), nn.MaxPool2d(3, 2, 1)
        self.first, self.second = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.third, self.beside = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 12, 1, 2)
        self.act, self.average = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.stem(x)))
        h = self.second(self.act(self.first(x)))
        h += x
        x = self.act(h)
        h = self.third(x)
        h += self.beside(x)
        return self.out(self.average(self.act(h)).flatten(1))


def test_layers_with_numbers_become_such_a_graph() -> None:
    model, data = Numbers().eval(), [(torch.randn(6, 3, 21, 21), torch.zeros(6))]
    stages = f"""data calib = sample("train", all)
      stage snap {{ once watch; calibrate calib; once int8_conv2d; once int8_linear }}
      stage stored {{ once int8_summand; once int8_average }}
      stage join {{ fixpoint {{ {RULES} }} }}"""
    text = f"{library('quant', 'codes')}\npipeline p {{ {stages} }}"
    x = torch.randn(2, 3, 21, 21)
    result = lissom.compile(model, text, inputs=(x,), data=data)
    view = GraphView(result.model)
    calls = (view.call(node) for node in result.model.graph.nodes)
    assert [call.op.name for call in calls if call is not None] == [
        "quantize", "int8_conv2d_codes", "int8_max_pool2d", "int8_conv2d_codes",
        "int8_conv2d_codes", "int8_conv2d_codes", "int8_conv2d_codes",
        "cast", "adaptive_avg_pool2d", "sub", "mul", "quantize", "flatten", "int8_linear",
    ]  # fmt: skip
    assert (result.model(x) - model(x)).norm() < 0.05 * model(x).norm()
