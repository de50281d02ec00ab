"""Steps of random models: layers, norms, activations, pools and sums."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .drawing import NetworkBuilder

EXTENTS = (6, 2, 3, 4, 5, 7, 8, 12, 1)
SPACE = (4, 2, 6, 3, 4, 5, 1)

Found = fx.Node | Sequence[fx.Node]
Step = Callable[[NetworkBuilder, fx.Node], Found]

STEPS: dict[str, Step] = {}
OFTEN: list[str] = []
"""The names of all steps, each as often as its weight says."""


def step(weight: int = 2) -> Callable[[Step], Step]:
    def known(function: Step) -> Step:
        STEPS[function.__name__] = function
        OFTEN.extend([function.__name__] * weight)
        return function

    return known


DECLARED = {"elementwise": 4, "normalises": 6, "pooling": 4, "resize": 2, "reduction": 2, "": 3}
"""Traits: a step for each draws any op that has it, as its declaration says."""


def _of_trait(trait: str) -> Step:
    return lambda m, x: m.declared(trait, x)


for _trait, _weight in DECLARED.items():
    STEPS[_trait or "any op"] = _of_trait(_trait)
    OFTEN.extend([_trait or "any op"] * _weight)


# -- layers ----------------------------------------------------------------------------------------

CONVS = {
    (1, False): (nn.Conv1d, F.conv1d), (2, False): (nn.Conv2d, F.conv2d),
    (1, True): (nn.ConvTranspose1d, F.conv_transpose1d),
    (2, True): (nn.ConvTranspose2d, F.conv_transpose2d),
}  # fmt: skip


def convolved(
    m: NetworkBuilder, x: fx.Node, out: int, groups: int = 1, transposed: bool = False
) -> Found:
    shape = m.shape(x, 3, 4)
    m.need(m.features(x) in (None, 1) or m.chance(20))
    layer, function = CONVS[len(shape) - 2, transposed]
    kernel, stride, bias = m.choice((1, 3, 2)), m.choice((1, 1, 2)), m.chance(70)
    padding = m.choice((kernel // 2, 0))
    if m.chance(75):
        made = layer(shape[1], out, kernel, stride, padding, groups=groups, bias=bias)
        return m.call(made, x)
    sides = (shape[1], out // groups) if transposed else (out, shape[1] // groups)
    weight = m.held(*sides, *[kernel] * (len(shape) - 2))
    rest = (1,) if not transposed else (0,)
    numbers = (stride, padding, *rest, groups)
    return m.call(function, x, weight, m.held(out) if bias else None, *numbers)


@step(5)
def conv(m: NetworkBuilder, x: fx.Node) -> Found:
    return convolved(m, x, m.choice(EXTENTS))


@step(3)
def grouped_conv(m: NetworkBuilder, x: fx.Node) -> Found:
    groups = m.divisor(m.shape(x, 3, 4)[1])
    return convolved(m, x, groups * m.choice((2, 1, 3, 4)), groups)


@step(3)
def depthwise(m: NetworkBuilder, x: fx.Node) -> Found:
    channels = m.shape(x, 3, 4)[1]
    return convolved(m, x, channels * m.choice((1, 2, 3)), channels)


@step()
def transposed_conv(m: NetworkBuilder, x: fx.Node) -> Found:
    groups = m.divisor(m.shape(x, 3, 4)[1]) if m.chance(50) else 1
    return convolved(m, x, groups * m.choice((2, 1, 3, 5)), groups, True)


@step(5)
def linear(m: NetworkBuilder, x: fx.Node) -> Found:
    width, out = m.shape(x, 2, 3, 4)[-1], m.choice(EXTENTS)
    if m.chance(70):
        return m.call(nn.Linear(width, out, bias=m.chance(70)), x)
    if m.chance(50):
        return m.call(F.linear, x, m.held(out, width), m.held(out) if m.chance(50) else None)
    return m.call(torch.matmul, x, m.held(width, out))


@step(1)
def recurrent(m: NetworkBuilder, x: fx.Node) -> Found:
    layer = m.choice((nn.GRU, nn.LSTM))(m.shape(x, 3)[2], m.choice((4, 3, 6)), batch_first=True)
    return m.call(operator.getitem, m.call(layer, x), 0)


@step(4)
def tied(m: NetworkBuilder, x: fx.Node) -> Found:
    """One parameter in two layers, or in a layer and once more the other way round."""
    width, kind = m.shape(x, 2, 3, 4)[-1], m.source.integer(0, 2)
    if kind < 2:
        out = m.choice(EXTENTS)
        if kind == 0:
            weight = m.held(out, width)
            inner = m.call(F.linear, x, weight)
        else:
            inner = m.call(nn.Linear(width, out), x)
            weight = m.read(f"{inner.target}.weight")
        return m.call(torch.matmul, m.call(torch.tanh, inner), m.read(str(weight.target)))
    first, second = nn.Linear(width, width), nn.Linear(width, width)
    m.filled(first)
    inner = m.call(torch.sigmoid, m.call(first, x))
    m.filled(second).weight = first.weight
    path = m.name()
    m.module.add_module(path, second)
    return m.again(path, inner)


@step()
def twice(m: NetworkBuilder, x: fx.Node) -> Found:
    shape = m.shape(x, 2, 3, 4)
    if len(shape) == 4 and m.chance(50):
        first = m.call(nn.Conv2d(shape[1], shape[1], 3, padding=1), x)
    else:
        first = m.call(nn.Linear(shape[-1], shape[-1]), x)
    between = m.call(torch.tanh, first) if m.chance(50) else x
    return [first, m.again(str(first.target), between)]


# -- elementwise, pooling, sums --------------------------------------------------------------------


@step(4)
def glu(m: NetworkBuilder, x: fx.Node) -> Found:
    axis = m.axis(x, 2)
    if m.chance(60):
        return m.call(F.glu, x, dim=axis)
    left, right = m.parts(m.call("chunk", x, 2, axis), 2)
    return m.call(operator.mul, left, m.call(F.silu, right))


def broadcast(a: Tensor, b: Tensor) -> bool:
    pairs = zip(reversed(a.shape), reversed(b.shape), strict=False)
    return b.is_floating_point() and all(m == n or 1 in (m, n) for m, n in pairs)


@step(6)
def together(m: NetworkBuilder, x: fx.Node) -> Found:
    functions = (operator.add, operator.mul, torch.sub, torch.maximum, torch.add)
    return m.call(m.choice(functions), x, m.partner(x, broadcast))


@step(3)
def residual(m: NetworkBuilder, x: fx.Node) -> Found:
    """A branch that ends in the shape that it began with, and a sum."""
    shape, mid = m.shape(x, 2, 3, 4), m.choice(EXTENTS)
    if len(shape) == 4 and m.chance(60):
        inner = m.call(torch.relu, m.call(nn.Conv2d(shape[1], mid, 1), x))
        branch = m.call(nn.Conv2d(mid, shape[1], 3, padding=1), inner)
    else:
        inner = m.call(F.gelu, m.call(nn.Linear(shape[-1], mid), x))
        branch = m.call(nn.Linear(mid, shape[-1]), inner)
    return m.call(operator.add, x, branch)


@step()
def gate(m: NetworkBuilder, x: fx.Node) -> Found:
    """Squeeze and excite."""
    shape = m.shape(x, 4)
    squeezed = m.call("mean", x, (2, 3), keepdim=True)
    inner = m.call(torch.relu, m.call(nn.Conv2d(shape[1], m.choice(EXTENTS), 1), squeezed))
    width = m.shape(inner)[1]
    gates = m.call(torch.sigmoid, m.call(nn.Conv2d(width, shape[1], 1), inner))
    return m.call(operator.mul, x, gates)


@step()
def place(m: NetworkBuilder, x: fx.Node) -> Found:
    """A parameter or buffer that is added: positions, scales of layers."""
    shape = m.shape(x)
    first = m.source.integer(0, len(shape) - 1)
    sizes = [1 if m.chance(40) else n for n in shape[first:]]
    held = m.held(*sizes, buffer=m.chance(25))
    return m.call(m.choice((operator.add, operator.mul)), x, held)


@step()
def matmul(m: NetworkBuilder, x: fx.Node) -> Found:
    def chained(a: Tensor, b: Tensor) -> bool:
        return a.ndim > 1 and b.ndim > 1 and a.shape[-1] == b.shape[-2] and a.ndim == b.ndim

    if m.chance(50):
        return m.call(torch.matmul, x, m.partner(x, chained))
    m.shape(x, 3, 4)
    return m.call(torch.matmul, x, m.call("transpose", x, -2, -1))


@step(2)
def opaque(m: NetworkBuilder, x: fx.Node) -> Found:
    if m.chance(50):
        return m.call(torch.cumprod, x, m.axis(x, mixes=True))
    return m.call(operator.getitem, m.call(torch.sort, x, m.axis(x, mixes=True)), 0)
