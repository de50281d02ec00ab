"""Codes of weights, rounded so that what a layer gives moves least, and not each weight for itself.

A layer sums `w[j] u[j]`. Where its inputs go together, what one weight loses by rounding the others
can make up for: the error of the output is `d E[u u^T] d^T` for a row of weights that moves by d,
and not the sum of the squares of d. Hassibi and Stork 1993 (Optimal Brain Surgeon) give the move of
all others that makes up best for one; Frantar et al. 2022 (OBQ, arXiv:2208.11580; GPTQ,
arXiv:2210.17323) round so, one input after another, all rows at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .quantization import symmetric
from .tensors import finite, require

RIDGE = 0.01
"""Share of the mean input power added to every direction (GPTQ, section 3.3): data that is only a
sample, and values that are rounded themselves.
"""
BLOCK = 128
"""So many inputs are rounded before what they lose is spread over all that follow."""


def adaptive_codes(
    w: Tensor, moments: Tensor, mean: Tensor | None = None, bits: int = 8
) -> tuple[Tensor, Tensor]:
    """Codes `[O, ...]` (int8) and scales `[O]` as of `symmetric`, rounded for inputs u with
    `moments` = E[u u^T] `[J, J]`, J the weights of a row; `[G, J, J]` for G groups of outputs.
    mean: E[u] `[G, J]`, where the bias makes up for it (`corrected_bias`).

    Every row keeps a weight of the largest code, so that `symmetric` finds the same codes again in
    `dequantized(codes, scale)`. Raises K001 where the sizes do not fit, K002 unless all is finite.
    """
    rows, scale = finite("adaptive_codes", w).flatten(1), symmetric(w, bits)[1]
    seen = finite("adaptive_codes", moments if moments.ndim == 3 else moments[None])
    groups, width = seen.shape[0], rows.shape[1]
    fits = seen.shape == (groups, width, width) and len(rows) % groups == 0
    require(fits, "adaptive_codes", f"moments {list(seen.shape)} do not fit {list(w.shape)}")
    if mean is not None:
        seen = seen - mean[:, :, None] * mean[:, None, :]
    units = (rows / scale.double()[:, None]).reshape(groups, -1, width)
    most = 2 ** (bits - 1) - 1
    parts = [_rounded(part, power, most) for part, power in zip(units, seen, strict=True)]
    return torch.cat(parts).to(torch.int8).reshape(w.shape), scale


def _rounded(units: Tensor, power: Tensor, most: int) -> Tensor:
    """Whole numbers for `units [O, J]`, in the order of the inputs' power."""
    order = power.diagonal().argsort(descending=True, stable=True)
    spread = _spread(power[order][:, order])
    rest = units[:, order].clone()
    largest = rest.abs().argmax(1)
    rows, codes = torch.arange(len(rest)), torch.empty_like(rest)
    kept = rest[rows, largest].round()
    for start in range(0, rest.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, rest.shape[1]))
        lost = torch.empty_like(rest[:, block])
        for at in range(start, block.stop):
            code = rest[:, at].round().clamp(-most, most)
            codes[:, at] = torch.where(largest == at, kept, code)
            lost[:, at - start] = (rest[:, at] - codes[:, at]) / spread[at, at]
            rest[:, at : block.stop] -= lost[:, at - start, None] * spread[at, at : block.stop]
        rest[:, block.stop :] -= lost @ spread[block, block.stop :]
    return codes[:, order.argsort()]


def _spread(power: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse: row i says how those behind i make up for it."""
    ridge = RIDGE * power.diagonal().mean().clamp(min=torch.finfo(power.dtype).tiny ** 0.5)
    held = power + ridge * torch.eye(len(power), dtype=power.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(held))
    return torch.linalg.cholesky(inverse, upper=True)


def corrected_bias(
    bias: Tensor | None, w: Tensor, rounded: Tensor, mean: Tensor | None
) -> Tensor | None:
    """`bias [O]` and what `rounded [O, ...]` gives less than `w [O, ...]` on inputs that are
    `mean [G, J]`: the mean of the output stays (Nagel et al. 2019, arXiv:1906.04721, section 4.2).
    An absent bias stays absent.
    """
    if bias is None or mean is None:
        return bias
    lost = (w.double() - rounded.double()).flatten(1)
    fits = len(w) % len(mean) == 0 and lost.shape[1] == mean.shape[1]
    require(fits, "corrected_bias", f"means {list(mean.shape)} do not fit {list(w.shape)}")
    by_group = lost.reshape(len(mean), -1, lost.shape[1])
    return (bias.double() + (by_group * mean[:, None, :].double()).sum(2).flatten()).to(bias.dtype)


FUNCTIONS = (adaptive_codes, corrected_bias)
