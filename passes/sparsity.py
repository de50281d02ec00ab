"""Weights with zeros among them: which numbers of a layer stay. Pure, and exact in every dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import finite, require

SLACK = 1e-9
"""Relative room for rounding where a share of the numbers is a whole number of them."""


def without_smallest(w: Tensor, ratio: float) -> Tensor:
    """`w` with `ratio` (0..1) of its numbers 0, those smallest in magnitude; shape and dtype of
    `w`.

    The share counts zeros that are there already and is rounded down to whole numbers. Of equal
    magnitudes the first stay, so that the number of zeros is exact. Magnitude pruning: Han, Pool,
    Tran and Dally 2015, arXiv:1506.02626. Raises K001 for a ratio outside 0..1, K002 unless `w` is
    finite.
    """
    require(0 <= ratio <= 1, "without_smallest", f"ratio {ratio} is outside 0..1")
    rows = finite("without_smallest", w).reshape(1, -1)
    gone = int(ratio * w.numel() * (1 + SLACK))
    return _only(w, _largest(rows, w.numel() - gone).reshape(w.shape))


def largest_of_each(w: Tensor, n: int, m: int) -> Tensor:
    """`w [O, I, ...]` with the `n` largest magnitudes of every `m` in a row along I, else 0.

    Groups start at multiples of `m` and never cross an output or a tap of a kernel: they are what
    one dot product meets, as the sparse tensor cores of Mishra et al. 2021 (arXiv:2104.08378) want
    it for n = 2 and m = 4. Of equal magnitudes the first stay. Shape and dtype of `w`. Raises K001
    unless n <= m and I is a multiple of m, K002 unless `w` is finite.
    """
    require(w.ndim >= 2, "largest_of_each", f"{list(w.shape)} has no input dimension")
    inputs = w.shape[1]
    require(1 <= n <= m, "largest_of_each", f"{n} of {m} is no choice")
    require(inputs % m == 0, "largest_of_each", f"{inputs} inputs are no multiple of {m}")
    last = finite("largest_of_each", w).movedim(1, -1)
    stay = _largest(last.reshape(-1, m), n).reshape(last.shape)
    return _only(w, stay.movedim(-1, 1))


def _largest(rows: Tensor, count: int) -> Tensor:
    """Whether a number is among the `count` largest magnitudes of its row: bool `[R, N]`."""
    order = rows.abs().sort(dim=1, descending=True, stable=True).indices
    stay = torch.zeros(rows.shape, dtype=torch.bool)
    return stay.scatter(1, order[:, :count], True)


def _only(w: Tensor, stay: Tensor) -> Tensor:
    return w.detach().masked_fill(~stay, 0)


FUNCTIONS = (without_smallest, largest_of_each)
