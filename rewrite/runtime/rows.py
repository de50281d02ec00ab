"""Codes whose scale is found when the model runs, one for each row of a value: nothing has to be
known of the data, and a row gives the same codes whatever batch it stands in.

A row is what lies along the last axis. Its scale is its largest number, sign aside, over 127, and

    number = scale * (code - 128)

so that zero has a code, and codes are uint8, which kernels read. A linear layer adds `(code - 128)
* weight`, exactly, and then, each step rounding once: times the scale of the weights, times that of
the row, plus bias. A row that holds nan or an infinity has the scale nan: all that is made of it is
nan, and other rows are as they were. A row of zeros has the smallest scale, and its codes are 128.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import kernels
from .int8 import exact_sums, scaled
from .layers import Int8Layer, Run

ZERO = 128
"""The code of zero."""


def row_scale(x: Tensor) -> Tensor:
    """The scale of each row of numbers [..., I]: [..., 1], in their type. It has no gradient: that
    of codes ends, and the largest number alone would get one.
    """
    x = x.detach()
    largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())
    # The rest of an infinity is nan, that of any other number itself.
    scale = largest.div_(127).fmod_(math.inf)
    return scale.clamp_(min=torch.finfo(x.dtype).tiny)


def quantize_rows(x: Tensor, scale: Tensor) -> Tensor:
    """Codes (uint8) of numbers [..., I] at a scale for each row [..., 1]. Of nan they are any."""
    steps = row_steps(x, scale)
    # To int8 first, for which torch has instructions, then 128 more: the highest bit.
    return steps.to(torch.int8).view(torch.uint8).bitwise_xor_(ZERO)


def fake_quantize_rows(x: Tensor) -> Tensor:
    """The numbers nearest to those of `x` [..., I] that have a code in their row."""
    scale = row_scale(x)
    return row_steps(x, scale).mul_(scale)


def int8_linear_rows(
    codes: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, rows: Tensor
) -> Tensor:
    """Codes [..., I] at a scale for each row [..., 1] with weights [O, I] (int8) at a scale for
    each output [O]: numbers [..., O] in the type of `scale`.
    """
    return finished_rows(scaled(exact_sums(codes, weight, ZERO), scale), rows, bias)


class Int8LinearRows(Int8Layer):
    """Codes [..., I] (uint8) with weights [O, I]: numbers [..., O]. Called with codes and the
    scale of each row [..., 1].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((out_features, in_features), bias, ZERO, device=device)
        self.in_features, self.out_features = in_features, out_features

    def exact(self, codes: Tensor, other: Tensor | None = None) -> Tensor:
        bias = None if self.bias is None else self.bias.double()
        return int8_linear_rows(codes, self.weight, self.scale.double(), bias, _given(other))

    def _plain(self, codes: Tensor, other: Tensor | None) -> Tensor:
        return int8_linear_rows(codes, self.weight, self.scale, self.bias, _given(other))

    def _coded(self, codes: Tensor, other: Tensor | None) -> Sequence[Tensor]:
        return (codes,)

    def _sample(self, codes: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows of one scale: nan would show nothing."""
        return self._first(codes), torch.ones_like(self._first(_given(other)))

    def _kernels(self, shape: torch.Size) -> Iterator[tuple[Run, str]]:
        rows = (shape.numel() // self.in_features, self.in_features)
        scale, bias = self._tensors()
        sums = kernels.linear(kernels.packed_linear(self.weight, rows), scale, None, ZERO)
        yield lambda codes, other: finished_rows(sums(codes), _given(other), bias), "oneDNN"

    def extra_repr(self) -> str:
        return "x".join(map(str, self.weight.shape))


def _given(rows: Tensor | None) -> Tensor:
    if rows is None:
        raise TypeError("codes of rows come with a scale for each row")
    return rows


def row_steps(x: Tensor, scale: Tensor) -> Tensor:
    """Codes less 128, in the type of `x`."""
    return (x / scale).round_().clamp_(-127, 127)


def finished_rows(y: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """What becomes of sums [..., O] times the scale of the weights, in place: `y` is nobody
    else's.
    """
    y = y.mul_(rows)
    return y if bias is None else y.add_(bias)
