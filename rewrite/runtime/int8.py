"""Integer arithmetic as it is meant, in plain torch: what every kernel has to give, bit for bit.

A number is stored as a code, `number = scale * (code - zero)`. Values of a model are uint8 with one
scale and one zero point, weights int8 with a scale for each output feature and the zero point 0, so
that all products of a layer have the scale `scale of the values * scale of the weights`, which the
layer keeps. Everything happens in this order:

1. `sum` of `(code - zero) * weight`: whole numbers, exact. Padding adds nothing: it is real zero.
2. `y = sum * scale`, then `+ bias`: each rounds once, in the type of `scale`.
3. `y = y + (other - other_zero) * other_scale` where another value is added: rounds once.
4. `y = activation(y)`.
5. `code = y * (1 / output_scale) + output_zero`, rounded half to even, clamped to 0 ... 255.

Sums are computed in float64, which holds whole numbers up to 2^53 and which no setting of torch
replaces by a coarser type. In float64 (weights of that type) the functions are the real arithmetic
that they stand for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Sizes = int | tuple[int, ...]


def _hardswish(y: Tensor) -> Tensor:
    """In the order of oneDNN, which is not that of torch.nn.functional.hardswish: `x * clamp(x / 6
    + 0.5, 0, 1)`. Last bits differ.
    """
    return y * (y * (1 / 6) + 0.5).clamp(0, 1)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "relu6": lambda y: y.clamp(0, 6),
    "hardswish": _hardswish,
}
"""What an integer layer may do with its result before it is stored."""


def single(number: float) -> float:
    """The float32 nearest to a scale: kernels take them in that type. Raises ValueError where it
    is not greater than 0.
    """
    if not number > 0:
        raise ValueError(f"a scale is greater than 0, this is {number}")
    return struct.unpack("f", struct.pack("f", number))[0]


def quantize(x: Tensor, scale: float, zero: int) -> Tensor:
    """Codes (uint8) of numbers, in the shape of `x`. float16 and bfloat16 are taken as float32."""
    return _codes(x.to(torch.promote_types(x.dtype, torch.float32)), scale, zero)


def dequantize(
    codes: Tensor, scale: float, zero: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers of codes, in their shape and in `dtype`."""
    return codes.to(dtype, copy=True).sub_(zero).mul_(single(scale))


def fake_quantize(x: Tensor, scale: float, zero: int) -> Tensor:
    """The numbers nearest to `x` that have a code, in its type. Where a gradient is asked for, it
    is that of `x` within the range of the codes, and 0 beyond.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        low, high = (-zero * single(scale), (255 - zero) * single(scale))
        inside = x.clamp(low, high)
        return inside + (_nearest(x.detach(), scale, zero) - inside.detach())
    return _nearest(x, scale, zero)


def _nearest(x: Tensor, scale: float, zero: int) -> Tensor:
    codes = quantize(x, scale, zero)
    return dequantize(codes, scale, zero, torch.promote_types(x.dtype, torch.float32)).to(x.dtype)


def int8_conv1d(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    zero: int = 0,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    **stored: Any,
) -> Tensor:
    """Convolution of codes [N, C, L] with int8 weights [O, C / groups, K]: numbers in the type of
    `scale` [O], or codes where `stored` has an output scale; see `finished`.
    """
    sums = F.conv1d(_exact(codes, zero), weight.double(), None, stride, padding, dilation, groups)
    return finished(scaled(sums, scale, bias, 1), other, **stored)


def int8_conv2d(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    zero: int = 0,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    **stored: Any,
) -> Tensor:
    """As `int8_conv1d`, of codes [N, C, H, W] with weights [O, C / groups, K, L]."""
    sums = F.conv2d(_exact(codes, zero), weight.double(), None, stride, padding, dilation, groups)
    return finished(scaled(sums, scale, bias, 2), other, **stored)


def int8_conv3d(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    zero: int = 0,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    **stored: Any,
) -> Tensor:
    """As `int8_conv1d`, of codes [N, C, D, H, W] with weights [O, C / groups, J, K, L]."""
    sums = F.conv3d(_exact(codes, zero), weight.double(), None, stride, padding, dilation, groups)
    return finished(scaled(sums, scale, bias, 3), other, **stored)


def int8_linear(
    codes: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    other: Tensor | None = None,
    zero: int = 0,
    **stored: Any,
) -> Tensor:
    """As `int8_conv1d`, of codes [..., I] with weights [O, I]: [..., O]."""
    return finished(scaled(exact_sums(codes, weight, zero), scale, bias), other, **stored)


def finished(
    y: Tensor,
    other: Tensor | None = None,
    activation: str = "none",
    output_scale: float | None = None,
    output_zero: int = 0,
    other_scale: float = 1.0,
    other_zero: int = 0,
) -> Tensor:
    """Steps 3 to 5: what becomes of the numbers of a layer. `other` are codes in their shape that
    are added; without an output scale the numbers stay numbers. Raises ValueError for codes of
    another shape.
    """
    if other is not None:
        if other.shape != y.shape:
            raise ValueError(f"{list(other.shape)} codes are added to {list(y.shape)} numbers")
        y = (y.double() + (other.double() - other_zero) * single(other_scale)).to(y.dtype)
    y = ACTIVATIONS[activation](y)
    return y if output_scale is None else quantize(y, output_scale, output_zero)


def exact_sums(codes: Tensor, weight: Tensor, zero: int) -> Tensor:
    """Step 1 of codes [..., I] with weights [O, I]: [..., O] in float64."""
    return _exact(codes, zero) @ weight.double().t()


def _exact(codes: Tensor, zero: int) -> Tensor:
    return codes.double() - zero


def scaled(sums: Tensor, scale: Tensor, bias: Tensor | None = None, behind: int = 0) -> Tensor:
    """Step 2. `behind` axes stand behind that of the output features."""
    shape, wide = (-1, *[1] * behind), torch.promote_types(scale.dtype, torch.float32)
    # A sum may be more than float16 holds.
    y = (sums.to(wide) * scale.to(wide).reshape(shape)).to(scale.dtype)
    return y if bias is None else y + bias.reshape(shape)


def _codes(y: Tensor, scale: float, zero: int) -> Tensor:
    """In place behind the first step: new memory costs as much as the arithmetic. By way of int16,
    for which there are instructions: to uint8 numbers are converted one by one, which takes longer
    than all other steps.
    """
    steps = (y * (1 / single(scale))).add_(zero).round_().clamp_(0, 255)
    return steps.to(torch.int16).to(torch.uint8)
