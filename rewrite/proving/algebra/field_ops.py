"""What torch's basic operations are in a finite field."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .field_tensor import CONSTANT, Arguments, Field, Operation, Settings, World
from .residues import PRIME, Track, as_residues, inverse, mixed, power, product, reduced

# -- arithmetic ------------------------------------------------------------------------------------


def _add(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    left, right = world.lift(args[0]), world.lift(args[1])
    factor = settings.get("alpha", args[2] if len(args) > 2 else 1)
    scaled = right if factor == 1 else _times(right, world.lift(factor))
    total = torch.remainder(left.residues + scaled.residues, PRIME)
    return Field(total, world, left.track.plus(scaled.track))


def _negative(value: Field) -> Field:
    return Field(torch.remainder(-value.residues, PRIME), value.world, value.track)


def _sub(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    return _add(world, func, (args[0], _negative(world.lift(args[1])), *args[2:]), settings)


def _rsub(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    factor = settings.get("alpha", args[2] if len(args) > 2 else 1)
    return _sub(world, func, (args[1], _times(world.lift(args[0]), world.lift(factor))), {})


def _times(left: Field, right: Field) -> Field:
    track = left.track.times(right.track)
    return Field(product(left.residues, right.residues), left.world, track)


def _inverse(value: Field) -> Field:
    return Field(inverse(value.residues), value.world, value.track.inverse())


def _div(world: World, func: Any, args: Arguments, settings: Settings) -> Any:
    if settings.get("rounding_mode") is not None:
        return NotImplemented
    return _times(world.lift(args[0]), _inverse(world.lift(args[1])))


def _pow(world: World, func: Any, args: Arguments, settings: Settings) -> Any:
    base, exponent = args
    if not isinstance(base, Field) or isinstance(exponent, Tensor):
        return NotImplemented
    if abs(exponent) == 0.5:
        root = _root(base)
        return root if exponent > 0 else _inverse(root)
    if exponent != int(exponent):
        return NotImplemented
    whole = int(exponent)
    return Field(power(base.residues, whole), world, base.track.to_the(whole))


def _root(value: Field) -> Field:
    """The root of what was drawn as a square; of anything else an opaque function."""
    world = value.world
    found, known = world.root(value.residues)
    hidden = as_residues(mixed(value.residues.long() + zlib.crc32(b"root") + world.key))
    plain = Track(1, 0, value.track.opaque, value.track.deep, value.track.free)
    track = plain if bool(known.all()) else value.track.hidden()
    return Field(torch.where(known, found, hidden), world, track)


# -- sums of products ------------------------------------------------------------------------------


def _bilinear(
    world: World, run: Callable[[Tensor, Tensor], Tensor], left: Any, right: Any, count: int
) -> Field:
    """`run` on both halves of the second factor: 36 bits for each product, so 2^17 may be added."""
    x, w = world.lift(left), world.lift(right)
    high = torch.floor(w.residues / 4096)
    upper, lower = run(x.residues, high), run(x.residues, w.residues - 4096 * high)
    total = reduced(reduced(upper) * 4096 + lower)
    return Field(total, world, x.track.times(w.track).summed(count))


def _matmul(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    return _bilinear(world, func, *args, count=args[0].shape[-1])


def _added(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    """`beta * z + alpha * (x @ y)`."""
    z, x, y = args
    found = _bilinear(world, torch.matmul, x, y, x.shape[-1])
    factors = [world.lift(settings.get(name, 1)) for name in ("alpha", "beta")]
    first, second = _times(found, factors[0]), _times(world.lift(z), factors[1])
    return _add(world, func, (first, second), {})


def _convolution(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    x, weight, bias, *rest = args
    transposed, groups = rest[3], rest[5]
    taps = math.prod(weight.shape[2:])
    count = taps * (weight.shape[0] // groups if transposed else weight.shape[1])
    found = _bilinear(world, lambda a, b: func(a, b, None, *rest), x, weight, count)
    if bias is None:
        return found
    shape = [-1, *[1] * (found.dim() - 2)]
    return _add(world, func, (found, world.lift(bias).reshape(shape)), {})


def _sum(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    x = args[0]
    total = reduced(func(x.residues, *args[1:], **settings))
    count = x.numel() // max(1, total.numel()) if total.numel() != x.numel() else x.numel()
    return Field(total, world, x.track.summed(count))


def _mean(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    x, *rest = args
    sums = torch.ops.aten.sum
    total = sums(x.residues, *rest, **settings) if rest or settings else x.residues.sum()
    count = x.numel() // max(1, total.numel())
    found = Field(reduced(total), world, x.track.summed(count))
    return _times(found, _inverse(world.lift(count)))


def _average(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    """Sums of windows times the inverses of their divisors."""
    x, kernel, stride, padding, ceil, whole, divisor = (*args, *_POOLING[len(args) :])
    windows = (kernel, stride, padding, ceil, whole)
    ones = torch.ones_like(x.residues)
    inside = func(ones, *windows, 1)
    shares = func(ones, *windows, divisor)
    divisors = torch.where(shares > 0, (inside / shares).round(), 1.0)
    sums = reduced(func(x.residues, *windows, 1))
    found = Field(sums, world, x.track.summed(int(inside.max())))
    return _times(found, Field(inverse(divisors), world, CONSTANT))


_POOLING: Arguments = (None, None, [], 0, False, True, None)


def _adaptive(world: World, func: Any, args: Arguments, settings: Settings) -> Field:
    """Windows from floor(i n / m) up to ceil((i + 1) n / m), axis by axis."""
    x, sizes = args
    found = x
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        extent = x.shape[axis]
        share = torch.zeros(extent, size, dtype=torch.float64)
        for i in range(size):
            first, last = i * extent // size, -(-(i + 1) * extent // size)
            share[first:last, i] = pow(last - first, -1, PRIME)
        moved = found.movedim(axis, -1)
        found = (moved @ Field(share, world, CONSTANT)).movedim(-1, axis)
    return found


def _batch_norm(world: World, func: Any, args: Arguments, settings: Settings) -> Any:
    x, weight, bias, mean, variance, training, _, eps = args
    if training:
        return NotImplemented
    shape = [-1, *[1] * (x.dim() - 2)]
    found = (x - mean.reshape(shape)) * _inverse(_root(variance + eps)).reshape(shape)
    found = found if weight is None else found * weight.reshape(shape)
    found = found if bias is None else found + bias.reshape(shape)
    return found, mean, variance


def _convert(world: World, func: Any, args: Arguments, settings: Settings) -> Any:
    """A wider type holds the same number; rounding to a narrower one is opaque."""
    value, dtype = args[0], settings.get("dtype") or args[0].dtype
    if not dtype.is_floating_point or dtype.itemsize < value.dtype.itemsize:
        return NotImplemented
    return Field(value.residues, world, value.track, dtype)


def _where(world: World, func: Any, args: Arguments, settings: Settings) -> Any:
    first, second = map(world.lift, args[1:])
    found = torch.where(args[0], first.residues, second.residues)
    return Field(found, world, first.track.beside(second.track))


def _made(world: World, func: Any, args: Arguments, settings: Settings) -> Any:
    found = func(args[0].residues, *args[1:], **settings)
    return world.lift(found) if found.is_floating_point() else found


EXACT: dict[str, Operation] = {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": lambda world, func, args, settings: _times(*map(world.lift, args)),
    "div": _div,
    "neg": lambda world, func, args, settings: _negative(args[0]),
    "reciprocal": lambda world, func, args, settings: _inverse(args[0]),
    "square": lambda world, func, args, settings: _times(args[0], args[0]),
    "pow": _pow,
    "sqrt": lambda world, func, args, settings: _root(args[0]),
    "rsqrt": lambda world, func, args, settings: _inverse(_root(args[0])),
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "addmm": _added,
    "baddbmm": _added,
    "addmv": _added,
    "convolution": _convolution,
    "sum": _sum,
    "cumsum": _sum,
    "mean": _mean,
    "avg_pool2d": _average,
    "avg_pool3d": _average,
    "_adaptive_avg_pool2d": _adaptive,
    "_adaptive_avg_pool3d": _adaptive,
    "native_batch_norm": _batch_norm,
    "_to_copy": _convert,
    "where": _where,
    "masked_fill": lambda world, func, args, settings: _where(
        world, func, (args[1], args[2], args[0]), settings
    ),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like"), _made),
    "full_like": _made,
}
