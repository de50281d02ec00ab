"""Which integer kernels this machine has, and calling them.

oneDNN's operators take plain uint8 and int8 tensors. They are looked up by name, for torch promises
none of them, and nothing they give is believed unseen: on CPUs without VNNI they add pairs of
products in 16 bits, which saturates, and for some shapes they are wrong (1 channel to 33 in each
group). So a layer lets a kernel run on an input of a new shape only after it has given the bits of
the plain arithmetic (`int8.py`) on one sample of that shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WIDEST = 64
"""The largest weight at which two products with a code stay below 2^15: 2 * 255 * 64."""

LIMIT = 2**31
"""Sums of kernels are int32: from here on they wrap."""

POST_OPS: dict[str, tuple[str, list[Any]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hardswish": ("hardswish", []),
}
"""The activations of `int8.py` as oneDNN calls them."""

_NAMES = ("qconv_prepack", "qconv_pointwise", "qlinear_prepack", "qlinear_pointwise")


@functools.cache
def operators() -> dict[str, Any]:
    """oneDNN's integer operators in this torch, by name; {} where one is missing. Before 2.8 that
    of convolutions had another name.
    """
    space = torch.ops.onednn
    found = {name: getattr(space, name, None) for name in (*_NAMES, "qconv2d_pointwise")}
    return found if all(found.values()) else {}


@functools.cache
def saturates() -> bool:
    """Whether sums of this CPU's kernels leave whole numbers: 64 products of 255 and 127 are
    2,072,640, and 1,048,544 in pairs of 16 bits.
    """
    codes = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.full((8, 64), 127, dtype=torch.int8)
    image, kernel = codes.reshape(1, 64, 1, 1), weight.reshape(8, 64, 1, 1)
    ones = torch.ones(8)
    flat = linear(packed_linear(weight), ones, None, 0)(codes)
    wide = convolution(packed_convolution(kernel, ones, 0, UNIT), ones, None, 0, UNIT)(image)
    return bool((flat != 255 * 127 * 64).any() or (wide != 255 * 127 * 64).any())


Run = Callable[[Tensor], Tensor]
Geometry = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation, groups."""
UNIT: Geometry = ([1, 1], [0, 0], [1, 1], 1)


def largest_sum(weight: Tensor) -> int:
    """What a sum of int8 weights [O, ...] times codes reaches at most, whatever the codes: 255
    times the magnitudes of a row. No order of adding leaves it.
    """
    return 255 * int(weight.to(torch.int32).abs().flatten(1).sum(1, dtype=torch.int64).max())


def why_none(weight: Tensor, scale: Tensor, codes: Tensor) -> str | None:
    """Why no kernel may run a layer; None where one may."""
    if codes.device.type != "cpu":
        return f"no integer kernel for {codes.device.type}"
    if not operators():
        return f"torch {torch.__version__} has no integer operators of oneDNN"
    if scale.dtype != torch.float32:
        return f"kernels take scales in float32, these are {scale.dtype}"
    if not codes.numel():
        return "there are no samples"
    if largest_sum(weight) >= LIMIT:
        return "its sums may leave int32"
    if saturates() and weight.to(torch.int32).abs().max() > WIDEST:
        return f"without VNNI, sums with weights beyond {WIDEST} saturate"
    return None


def reads_padding_alone(weight: Tensor, geometry: Geometry) -> bool:
    """Whether some window of a convolution can lie outside its input. With a zero point oneDNN then
    gives numbers that change from run to run, and may be right when it is tried.
    """
    _, padding, dilation, _ = geometry
    spans = [step * (size - 1) + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
    return any(pad >= span for pad, span in zip(padding, spans, strict=True))


def packed_convolution(
    weight: Tensor,
    scale: Tensor,
    zero: int,
    geometry: Geometry,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """`shape`: of the codes that are to come. Packed for others, weights are packed anew at each
    call, which costs as much as a small layer.
    """
    weight, scale = weight.contiguous(), scale.contiguous()
    return operators()["qconv_prepack"](weight, scale, 1.0, zero, *geometry, shape)


def packed_linear(weight: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """The same of a linear layer, [N, I]. Strides of the weight would be ignored."""
    return operators()["qlinear_prepack"](weight.contiguous(), shape)


def convolution(
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    zero: int,
    geometry: Geometry,
    activation: str = "none",
    output: tuple[float, int] | None = None,
) -> Run:
    """Steps 1, 2, 4 and 5 of `int8.py` on codes."""
    given = (1.0, zero, packed, scale, _no_zero_points(len(scale)), bias, *geometry)
    return _bound("qconv_pointwise", (*given, *_stored(output), *POST_OPS[activation], ""))


def convolution_added(
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    zero: int,
    geometry: Geometry,
    activation: str,
    output: tuple[float, int] | None,
    other_scale: float,
    other_zero: int,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Steps 1 to 5 of images, to codes. The operator writes over what it adds to, and gives numbers
    of its type: that is a copy here. What this returns raises NotImplementedError for anything
    else, ValueError for another number of samples, of which the operator would read too many.
    """
    run = operators()["qconv2d_pointwise"].binary
    before = (1.0, zero, packed, scale, _no_zero_points(len(scale)))
    added = (other_scale, other_zero, "sum", 1.0)
    behind = (bias, *geometry, *_stored(output), *added, *POST_OPS[activation], "")

    def summed(codes: Tensor, other: Tensor) -> Tensor:
        if codes.dim() != 4 or output is None:
            raise NotImplementedError
        if codes.shape[0] != other.shape[0]:
            raise ValueError(f"{other.shape[0]} samples are added to {codes.shape[0]}")
        return run(codes, *before, other.clone(memory_format=torch.channels_last), *behind)

    return summed


def linear(
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    zero: int,
    activation: str = "none",
    output: tuple[float, int] | None = None,
) -> Run:
    """Steps 1, 2, 4 and 5 of `int8.py` on codes."""
    given = (1.0, zero, packed, scale, _no_zero_points(len(scale)), bias)
    run = _bound("qlinear_pointwise", (*given, *_stored(output), *POST_OPS[activation], ""))
    return lambda codes: run(codes.contiguous())


def _bound(name: str, given: tuple[Any, ...]) -> Run:
    """An operator with all that it is given besides codes: put together once, not at each call."""
    run = operators()[name]
    return lambda codes: run(codes, *given)


def _stored(output: tuple[float, int] | None) -> Sequence[Any]:
    return (*output, torch.uint8) if output else (1.0, 0, torch.float32)


@functools.lru_cache(1024)
def _no_zero_points(count: int) -> Tensor:
    """Weights have none, and the operators would not read them."""
    return torch.zeros(count, dtype=torch.int32)
