"""What weights become while they are trained: functions of `train { y.weight := expr }`. Gradients
flow through them, to the numbers that the optimiser moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .quantization import dequantized, symmetric
from .tensors import require


class _StraightThrough(torch.autograd.Function):
    """The second tensor; its gradient is that of the first."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


class _Clipped(torch.autograd.Function):
    """Numbers within bounds. A gradient that would push a number further out is dropped."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((w <= low).to(torch.int8) - (w >= high).to(torch.int8))
        return w.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (outside,) = ctx.saved_tensors  # 1 below, -1 above: a step goes against the gradient
        return torch.where(outside * grad > 0, 0, grad), None, None


def straight_through(w: Tensor, value: Tensor) -> Tensor:
    """`value`, bit for bit; the gradient goes to `w` as if nothing had been done to it (Bengio,
    Leonard and Courville 2013, arXiv:1308.3432). Raises K001 for other shapes.
    """
    require(w.shape == value.shape, "straight_through", f"{list(w.shape)}, {list(value.shape)}")
    return _StraightThrough.apply(w, value.detach().to(w.dtype))


def clipped(w: Tensor, low: float, high: float) -> Tensor:
    """`w` within `low` ... `high`. Its gradient is 0 where a step against it would lead further
    out, so that no number gets lost beyond the bounds: BinaryConnect clips after each step instead
    (Courbariaux, Bengio and David 2015, arXiv:1511.00363, section 2.4). Raises K001 unless low <
    high.
    """
    low, high = float(low), float(high)
    require(low < high, "clipped", f"{low:g} is not below {high:g}")
    return _Clipped.apply(w, low, high)


def mask(w: Tensor) -> Tensor:
    """1 where `w` is not 0, else 0; shape and dtype of `w`."""
    return (w != 0).to(w.dtype)


def sign(w: Tensor) -> Tensor:
    """1 where `w` is 0 or more, else -1: no third value. Shape and dtype of `w`."""
    return torch.where(w < 0, -1.0, 1.0).to(w.dtype)


def drawn_sign(w: Tensor, most: float) -> Tensor:
    """1 or -1, drawn: 1 with the probability (w / most + 1) / 2 within 0..1, so that the mean is
    `w / most` (BinaryConnect, section 2.2). Shape and dtype of `w`.
    """
    chance = (w.detach() / most + 1) / 2
    return torch.where(torch.rand_like(chance) < chance, 1.0, -1.0).to(w.dtype)


def on_grid(w: Tensor, bits: int = 8) -> Tensor:
    """The numbers of `w` that codes of `symmetric(w, bits)` stand for. Raises K001 for fewer than 2
    or more than 8 bits, K002 unless `w` is finite.
    """
    require(2 <= bits <= 8, "on_grid", f"{bits} bits are not 2 to 8")
    return dequantized(*symmetric(w.detach(), bits)).to(w.dtype)


FUNCTIONS = (straight_through, clipped, mask, sign, drawn_sign, on_grid)
