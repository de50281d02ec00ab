"""Grids of integers: which numbers codes stand for.

`number = scale * (code - zero)`. Scales are numbers that float32 has, as kernels take them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..grammar.diagnostics import fail
from .observers import Seen
from .tensors import finite, require


def affine(range: Seen, bits: int = 8) -> tuple[float, int]:
    """Scale and zero point of codes 0 ... 2^bits - 1 for the numbers of a range, zero among them:
    padding and relu are exact. Raises K001 for a range that holds zero alone, K002 for one with an
    end that is not finite.
    """
    if not (math.isfinite(range.least) and math.isfinite(range.most)):
        raise fail("K002", "`affine`: the value is not finite on the data")
    least, most = min(range.least, 0.0), max(range.most, 0.0)
    require(most > least, "affine", "all numbers are zero")
    scale = _single((most - least) / (2**bits - 1))
    require(scale > 0, "affine", f"{most - least:g} is too small a range for float32")
    return scale, round(-least / scale)


def symmetric(w: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Codes `[O, ...]` (int8) of a weight and a scale for each of its rows `[O]`, with the zero
    point 0: the largest of a row becomes 2^(bits - 1) - 1. A row of zeros gets the scale 1. Raises
    K002 unless all of `w` is finite.
    """
    most = 2 ** (bits - 1) - 1
    rows = finite("symmetric", w).flatten(1)
    largest = rows.abs().amax(1)
    scale = (largest / most).float().double()  # below float32 a row counts as zeros
    scale = torch.where(scale > 0, scale, 1.0)
    codes = (rows / scale[:, None]).round().clamp(-most, most).to(torch.int8)
    return codes.reshape(w.shape), scale.to(w.dtype)


def dequantized(codes: Tensor, scale: Tensor) -> Tensor:
    """The weight `[O, ...]` of codes and a scale for each row `[O]`, in the type of `scale`."""
    return codes.to(scale.dtype) * scale.reshape(-1, *[1] * (codes.dim() - 1))


def _single(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32).item()


FUNCTIONS = (affine, symmetric, dequantized)
