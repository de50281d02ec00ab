"""How large the channels between two layers are: factors that move size from one to the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .tensors import finite, require

NEAR = 2.1
"""Within this factor rows and columns count as of one size. Beyond two, so that what a power of two
has made is never made anew.
"""


def balance(rows: Tensor, columns: Tensor, groups: int = 1) -> Tensor:
    """Powers of two `[O]`: divided by them the rows of `rows [O, ...]` are as large as what
    `columns [P, I / groups, ...]` holds for them, multiplied by them, to within a factor of two.

    The nearest to sqrt(largest of a row / largest of its columns): Nagel et al. 2019,
    arXiv:1906.04721, equation 11; 1 where they are `NEAR` already, and for what is all zeros on
    either side. Where I is a multiple of O, each row has as many inputs, side by side. float64.
    Raises K001 where the sizes do not fit, K002 for what is not finite.
    """
    apart = _ratios("balance", rows, columns, groups)
    return torch.exp2((apart / 2).round().where(apart.abs() > math.log2(NEAR), 0.0))


def imbalance(rows: Tensor, columns: Tensor, groups: int = 1) -> float:
    """How many times as large as its columns a row is, or they as it, at most over the rows; 1
    where one of them is all zeros. Arguments and errors as of `balance`.
    """
    return torch.exp2(_ratios("imbalance", rows, columns, groups).abs().max()).item()


def migration(peaks: Tensor, w: Tensor, share: float = 0.5) -> Tensor:
    """Powers of two `[I]` that move size from inputs into the columns of `w [O, I]`, the nearest to
    peaks^share / (largest of a column)^(1 - share): SmoothQuant, Xiao et al. 2022,
    arXiv:2211.10438, equation 4.

    peaks: the largest magnitude of each input `[I]`. 1 where an input or its column is zero; so of
    what has been moved. float64. Raises K001 where the sizes do not fit or the share is outside
    0..1, K002 for what is not finite.
    """
    given, read = finite("migration", peaks), _of_inputs("migration", w, 1)
    require(given.shape == read.shape, "migration", f"{len(given)} peaks, {len(read)} inputs")
    require(bool((given >= 0).all()), "migration", "peaks are magnitudes, and some are negative")
    require(0 <= share <= 1, "migration", f"a share of {share} is outside 0..1")
    both = (given > 0) & (read > 0)
    power = share * given.log2() - (1 - share) * read.log2()
    return torch.exp2(power.where(both, 0.0).round())


def _ratios(name: str, rows: Tensor, columns: Tensor, groups: int) -> Tensor:
    """Logarithms to base 2 of how many times as large as its columns each row is, `[O]`."""
    given = finite(name, rows).reshape(len(rows), -1).abs().amax(1)
    read = _of_inputs(name, columns, groups)
    fits = len(read) % len(given) == 0
    require(fits, name, f"{len(given)} outputs and {len(read)} inputs do not fit")
    read = read.reshape(len(given), -1).amax(1)
    both = (given > 0) & (read > 0)
    return torch.where(both, given.log2() - read.log2(), 0.0)


def _of_inputs(name: str, w: Tensor, groups: int) -> Tensor:
    """The largest weight `[I]` of each input of `w [P, I / groups, ...]`."""
    require(len(w) % groups == 0, name, f"{len(w)} outputs do not come in {groups} groups")
    blocks = finite(name, w).abs().reshape(groups, len(w) // groups, w.shape[1], -1)
    return blocks.amax((1, 3)).flatten()


FUNCTIONS = (balance, imbalance, migration)
