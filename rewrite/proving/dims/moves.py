"""Steps of random models that move numbers, and attention, which is mostly movement."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .drawing import NetworkBuilder, Number
from .steps import Found, step


@step(4)
def cat(m: NetworkBuilder, x: fx.Node) -> Found:
    """Any values that fit, the first one again too, on any axis."""
    axis = m.axis(x, mixes=m.chance(35))

    def fits(a: Tensor, b: Tensor) -> bool:
        if a.ndim != b.ndim or not b.is_floating_point():
            return False
        return all(
            m == n for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if i - axis
        )

    values = [x, *(m.partner(x, fits) for _ in range(m.choice((1, 2))))]
    if m.chance(40):
        values.append(m.sibling(x))
    return m.call(torch.cat, values if m.chance(50) else values[::-1], dim=axis)


@step(1)
def stack(m: NetworkBuilder, x: fx.Node) -> Found:
    m.shape(x, 2, 3)
    other = m.sibling(x) if m.chance(50) else m.partner(x, lambda a, b: a.shape == b.shape)
    return m.call(torch.stack, [x, other], dim=m.choice((1, 2)))


@step(3)
def split(m: NetworkBuilder, x: fx.Node) -> Found:
    axis = m.axis(x, 2)
    extent = m.shape(x)[axis]
    first = m.source.integer(1, extent - 1)
    sizes = m.choice(([first, extent - first], first, [1, extent - 1]))
    made = m.call(m.choice((torch.split, "split")), x, sizes, dim=axis)
    return m.parts(made, m.choice((1, 2)) if isinstance(sizes, list) else 1)


@step()
def chunk(m: NetworkBuilder, x: fx.Node) -> Found:
    axis = m.axis(x, 2)
    return m.parts(m.call("chunk", x, m.choice((2, 3, 4)), axis), 1)


@step(2)
def unbind(m: NetworkBuilder, x: fx.Node) -> Found:
    m.shape(x, 3, 4)
    return m.parts(m.call("unbind", x, m.axis(x, 2, mixes=True)), 1)


@step()
def narrow(m: NetworkBuilder, x: fx.Node) -> Found:
    axis = m.axis(x, 2)
    extent = m.shape(x)[axis]
    start = m.source.integer(0, extent - 1)
    return m.call(torch.narrow, x, axis, start, m.source.integer(1, extent - start))


@step(3)
def slices(m: NetworkBuilder, x: fx.Node) -> Found:
    """A range of an axis: with steps, from the end, or in two parts whose border is computed."""
    axis = m.axis(x, 2)
    extent = m.shape(x)[axis]
    start, stop = m.source.integer(0, extent - 1), m.choice((None, -1, extent - 1, extent))
    front = (slice(None),) * axis
    if m.chance(30):
        half = m.over(m.extent(x, axis), 2)
        ranges = (slice(None, half), slice(half, None))
        return [m.call(operator.getitem, x, (*front, part)) for part in ranges]
    part = slice(start, stop, m.choice((None, 2, 3, 1)))
    index = (..., part) if axis == len(m.shape(x)) - 1 and m.chance(30) else (*front, part)
    return m.call(operator.getitem, x, index)


@step(1)
def select(m: NetworkBuilder, x: fx.Node) -> Found:
    axis = m.axis(x, mixes=True)
    m.shape(x, 3, 4)
    at = m.source.integer(0, m.shape(x)[axis] - 1)
    if m.chance(50):
        return m.call("select", x, axis, at)
    return m.call(operator.getitem, x, (*(slice(None),) * axis, at))


@step(1)
def picked(m: NetworkBuilder, x: fx.Node) -> Found:
    axis = m.axis(x)
    order = torch.randperm(m.shape(x)[axis], generator=m.generator)
    return m.call(torch.index_select, x, axis, m.constant(order))


@step(3)
def shuffle(m: NetworkBuilder, x: fx.Node) -> Found:
    _, channels, *space = m.shape(x, 3, 4)
    groups = m.divisor(channels)
    if len(space) == 2 and m.chance(30):
        return m.call(F.channel_shuffle, x, groups)
    batch, number = m.extent(x, 0), m.extent(x, 1)
    rest = [m.extent(x, axis + 2) for axis in range(len(space))]
    parts = (groups, m.over(number, groups))
    inner = m.call("transpose", m.call("view", x, batch, *parts, *rest), 1, 2)
    inner = m.call("contiguous", inner) if m.chance(50) else inner
    return m.call("reshape", inner, batch, m.choice((number, channels, -1)), *rest)


@step(4)
def pixels(m: NetworkBuilder, x: fx.Node) -> Found:
    channels = m.shape(x, 4)[1]
    if m.chance(40):
        return m.call(F.pixel_unshuffle, x, 2)
    wide = x if channels % 4 == 0 else m.call(nn.Conv2d(channels, m.choice((8, 4, 12)), 1), x)
    return m.call(F.pixel_shuffle, wide, 2)


@step()
def roll(m: NetworkBuilder, x: fx.Node) -> Found:
    axis = m.axis(x, 2)
    if m.chance(30):
        return m.call("flip", x, (axis,))
    return m.call(torch.roll, x, m.choice((1, -1, 2, 3)), axis)


@step(3)
def transpose(m: NetworkBuilder, x: fx.Node) -> Found:
    shape = m.shape(x, 3, 4)
    if m.chance(50):
        return m.call("transpose", x, m.axis(x), len(shape) - 1)
    order = list(range(1, len(shape)))
    order = [order.pop(m.source.integer(0, len(order) - 1)) for _ in shape[1:]]
    return m.call("permute", x, 0, *order)


@step(3)
def flatten(m: NetworkBuilder, x: fx.Node) -> Found:
    shape = m.shape(x, 3, 4)
    if m.chance(60):
        return m.call("flatten", x, m.choice((1, 2)))
    sizes: list[Number] = [m.extent(x, axis) for axis in range(len(shape) - 2)]
    if m.chance(50):
        return m.call("reshape", x, *sizes, -1)
    left, right = m.extent(x, len(shape) - 2), m.extent(x, len(shape) - 1)
    return m.call("reshape", x, *sizes, m.call(operator.mul, left, right))


@step(3)
def unflatten(m: NetworkBuilder, x: fx.Node) -> Found:
    """An axis in two, and often the two in the other order."""
    shape = m.shape(x, 2, 3)
    axis = m.axis(x, 4)
    parts = m.divisor(shape[axis])
    each = shape[axis] // parts
    kind = m.source.integer(0, 2)
    if kind == 0:
        made = m.call("unflatten", x, axis, m.choice(((parts, each), (-1, each), (parts, -1))))
    else:
        sizes = [m.extent(x, i) for i in range(len(shape))]
        sizes[axis : axis + 1] = [parts, m.over(sizes[axis], parts)]
        made = m.call(m.choice(("reshape", "view")), x, *sizes)
    return m.call("transpose", made, axis, axis + 1) if m.chance(50) else made


@step(4)
def windows(m: NetworkBuilder, x: fx.Node) -> Found:
    """The partition of an image into windows, and the way back."""

    def fits(a: Tensor, b: Tensor) -> bool:
        return b.ndim == 4 and b.shape[2] % 2 == b.shape[3] % 2 == 0

    x = m.partner(x, fits)
    n, c, h, w = m.shape(x)
    sizes = (n, m.extent(x, 1), h // 2, 2, w // 2, 2)
    parts = m.call("permute", m.call("view", x, *sizes), 0, 2, 4, 3, 5, 1)
    flat = m.call("reshape", parts, n * h * w // 4, 4, m.choice((c, -1)))
    if m.chance(40):
        return flat
    inner = m.call(nn.Linear(c, c), flat)
    back = m.call("view", inner, n, h // 2, w // 2, 2, 2, c)
    return m.call("reshape", m.call("permute", back, 0, 5, 1, 3, 2, 4), n, c, h, w)


@step(3)
def pad(m: NetworkBuilder, x: fx.Node) -> Found:
    rank, axis = len(m.shape(x, 2, 3, 4)), m.axis(x)
    sides = [0, 0] * (rank - 1 - axis) + [m.choice((1, 0, 2, -1)), m.choice((1, 2, 0))]
    if m.chance(25):
        return m.call(F.pad, x, (1, 1), mode=m.choice(("reflect", "replicate", "circular")))
    return m.call(F.pad, x, tuple(sides), value=m.choice((0.0, 0.5)))


@step(3)
def repeated(m: NetworkBuilder, x: fx.Node) -> Found:
    shape, kind = m.shape(x, 2, 3, 4), m.source.integer(0, 2)
    axis = m.axis(x)
    if kind == 0:
        return m.call("repeat_interleave", x, m.choice((2, 3)), axis)
    if kind == 1:
        return m.call("repeat", x, *(2 if i == axis else 1 for i in range(len(shape))))
    m.need(len(shape) < 4)
    wide = m.call("unsqueeze", x, axis)
    made = m.call("expand", wide, *shape[:axis], m.choice((2, 3)), *shape[axis:])
    return m.call("flatten", made, axis, axis + 1) if m.chance(70) else made


# -- attention -------------------------------------------------------------------------------------


@step(5)
def attention(m: NetworkBuilder, x: fx.Node) -> Found:
    """Heads by one or three projections, perhaps fewer for keys and values, fused or not."""
    n, length, width = m.shape(x, 3)
    heads, each = m.choice((2, 3, 4)), m.choice((4, 3, 2, 5))
    fewer = m.chance(30)
    if m.chance(40) and not fewer:
        q, k, v = _one_projection(m, x, heads, each)
    else:
        own = m.divisor(heads) if fewer else heads
        wide = m.choice((each, 3))
        q = _heads(m, m.call(nn.Linear(width, heads * each), x), heads)
        k = _heads(m, m.call(nn.Linear(width, heads // own * each), x), heads // own)
        v = _heads(m, m.call(nn.Linear(width, heads // own * wide), x), heads // own)
        k, v = (_again(m, part, own) if own > 1 else part for part in (k, v))
    m.need(m.shape(k)[1] == heads)
    mixed = _mixed(m, q, k, v, length)
    out = m.call("transpose", mixed, 1, 2)
    total = heads * m.shape(v)[-1]
    flat = m.choice((("flatten", 2), ("reshape", n, length, total), ("reshape", n, length, -1)))
    joined = m.call(flat[0], out, *flat[1:])
    made = m.call(nn.Linear(total, width), joined)
    return m.call(operator.add, x, made) if m.chance(50) else made


def _heads(m: NetworkBuilder, x: fx.Node, heads: int) -> fx.Node:
    total = m.shape(x)[2]
    if m.chance(30):
        return m.call("transpose", m.call("unflatten", x, -1, (heads, total // heads)), 1, 2)
    last = m.choice((m.over(m.extent(x, 2), heads), -1))
    sizes = (m.extent(x, 0), m.extent(x, 1), m.choice((heads, heads)), last)
    return m.call("permute", m.call("view", x, *sizes), 0, 2, 1, 3)


def _one_projection(m: NetworkBuilder, x: fx.Node, heads: int, each: int) -> list[fx.Node]:
    n, length, width = m.shape(x)
    qkv = m.call(nn.Linear(width, 3 * heads * each), x)
    kind = m.source.integer(0, 3)
    if kind == 0:
        made = m.call("permute", m.call("reshape", qkv, n, length, 3, heads, each), 2, 0, 3, 1, 4)
        return m.parts(m.call("unbind", made, 0), 3)
    if kind == 1:
        made = m.call("view", qkv, n, length, heads, 3 * each)
        return m.parts(m.call("chunk", m.call("transpose", made, 1, 2), 3, -1), 3)
    if kind == 2:
        made = m.call("permute", m.call("view", qkv, n, length, 3, heads, each), 2, 0, 3, 1, 4)
        return [m.call(operator.getitem, made, i) for i in range(3)]
    return [_heads(m, part, heads) for part in m.parts(m.call("chunk", qkv, 3, -1), 3)]


def _again(m: NetworkBuilder, x: fx.Node, times: int) -> fx.Node:
    """Heads of keys and values for several heads of queries."""
    if m.chance(50):
        return m.call("repeat_interleave", x, times, 1)
    n, heads, length, each = m.shape(x)
    wide = m.call("expand", m.call("unsqueeze", x, 2), n, heads, times, length, each)
    return m.call("reshape", wide, n, heads * times, length, each)


def _mixed(m: NetworkBuilder, q: fx.Node, k: fx.Node, v: fx.Node, length: int) -> fx.Node:
    seen = m.random(length, length) > 0
    seen |= torch.eye(length, dtype=torch.bool)
    kind = m.source.integer(0, 2)
    if m.chance(40):
        mask = None if kind == 0 else m.constant(seen if kind == 1 else m.random(length, length))
        return m.call(F.scaled_dot_product_attention, q, k, v, mask)
    scores = m.call(torch.matmul, q, m.call("transpose", k, -2, -1))
    scores = m.call(operator.mul, scores, _scale(m, q))
    if kind == 1:
        scores = m.call("masked_fill", scores, m.constant(~seen), -1e9)
    elif kind == 2:
        scores = m.call(operator.add, scores, m.held(1, m.shape(q)[1], 1, 1))
    return m.call(torch.matmul, m.call("softmax", scores, dim=-1), v)


def _scale(m: NetworkBuilder, q: fx.Node) -> float | fx.Node:
    """A number, or one that a size node gives."""
    size = m.extent(q, 3)
    return size**-0.5 if isinstance(size, int) else m.call(operator.pow, size, -0.5)
