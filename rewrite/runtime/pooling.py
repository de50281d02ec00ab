"""Pooling and resizing of codes. The kernel of torch that pools uint8 refuses images of more than
255 positions in channels_last: slices and elementwise ops stand for it, which keep the memory
format and move a quarter of the bytes of floats.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .int8 import Sizes


def int8_max_pool(
    codes: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    axes: int = 2,
) -> Tensor:
    """The largest code of each window over the last `axes` axes of codes [..., H, W] (uint8), as
    torch's pooling of that many axes: [..., HO, WO]. Padding has the smallest code, which is below
    or equal to all. Raises ValueError for more padding than half a window.
    """
    kernel, steps = _each(kernel_size, axes), _each(dilation, axes)
    strides, pads = _each(kernel_size if stride is None else stride, axes), _each(padding, axes)
    spans = [step * (size - 1) + 1 for size, step in zip(kernel, steps, strict=True)]
    if any(2 * pad > span for pad, span in zip(pads, spans, strict=True)):
        raise ValueError(f"padding {pads} is more than half of windows of {spans}")
    sizes = codes.shape[-axes:]
    geometry = zip(sizes, spans, strides, pads, strict=True)
    counts = [_windows(*given, ceil_mode) for given in geometry]
    ends = zip(counts, strides, spans, pads, sizes, strict=True)
    behind = [max(0, (count - 1) * by + span - pad - size) for count, by, span, pad, size in ends]
    codes = _padded(codes, pads, behind)
    for axis, (count, by, size, step) in enumerate(
        zip(counts, strides, kernel, steps, strict=True)
    ):
        taps = [_tap(codes, axis - axes, first * step, count, by) for first in range(size)]
        codes = functools.reduce(torch.maximum, taps)
    return codes


def int8_interpolate(codes: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
    """Codes [N, C, ...] (uint8) repeated or left out, as `torch.nn.functional.interpolate` does
    with numbers for `mode="nearest"`: the other modes make numbers between two.
    """
    return F.interpolate(codes, size, scale_factor)


def _windows(size: int, span: int, stride: int, pad: int, ceil_mode: bool) -> int:
    """How many windows there are along an axis; each begins in the input or in the padding before
    it.
    """
    count = (size + 2 * pad - span + (stride - 1) * ceil_mode) // stride + 1
    return count - ((count - 1) * stride >= size + pad)


def _padded(codes: Tensor, before: tuple[int, ...], behind: list[int]) -> Tensor:
    ends = [end for pair in zip(before, behind, strict=True) for end in reversed(pair)]
    return F.pad(codes, ends[::-1]) if any(ends) else codes


def _tap(codes: Tensor, axis: int, first: int, count: int, stride: int) -> Tensor:
    """What stands at one place of every window."""
    index = slice(first, first + (count - 1) * stride + 1, stride)
    return codes[(..., index, *[slice(None)] * (-axis - 1))]


def _each(size: Sizes, axes: int) -> tuple[int, ...]:
    return (size,) * axes if isinstance(size, int) else tuple(size)
