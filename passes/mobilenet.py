"""Numbers that the blocks of MobileNet start from: least squares on what a convolution reads.

`moments` are E[u u^T] `[J, J]` and `mean` E[u] `[1, J]` over the patches u of a convolution, in
float64; J = I * taps. A depthwise weight `[I, 1, ...]` reads its own channel of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import finite, require, svd

RIDGE = 1e-6
"""Share of the mean power added to every direction: some channels never move."""


def output_moments(w: Tensor, moments: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, float64 `[O]` each, of what `w [O, I, ...]` makes of patches, or `w [I, 1,
    ...]` of its own channels. Raises K001 where the sizes do not fit, K002 unless all is finite.
    """
    rows = _over_patches("output_moments", w, moments, mean)
    middle = rows @ mean.flatten()
    variance = ((rows @ moments) * rows).sum(1) - middle.square()
    return middle, variance.clamp(min=0)


def pointwise_fit(w: Tensor, dw: Tensor, moments: Tensor, mean: Tensor) -> Tensor:
    """`pw [O, I, 1, 1]` with the least variance of `w u - pw (dw u)`, for `w [O, I, K, L]` and the
    depthwise `dw [I, 1, K, L]`: the best that a 1x1 convolution makes of what `dw` gives, constants
    aside. dtype of `w`. Raises K001 where the sizes do not fit, K002 unless all is finite.
    """
    rows = _over_patches("pointwise_fit", w, moments, mean)
    basis = _over_patches("pointwise_fit", dw, moments, mean)
    centred = moments - mean.flatten()[:, None] * mean.flatten()
    power = basis @ centred @ basis.T
    ridge = RIDGE * power.diagonal().mean().clamp(min=torch.finfo(power.dtype).tiny ** 0.5)
    held = power + ridge * torch.eye(len(power), dtype=power.dtype)
    mix = torch.linalg.solve(held, basis @ centred @ rows.T).T
    return mix[:, :, None, None].to(w.dtype)


def outputs_svd(w: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`(pw [count, I, 1, 1], dw [count, 1, K, L])` of `w [O, I, K, L]`: a 1x1 convolution and a
    depthwise one behind it. Row j is the component j // O of the matrix of output j % O, inputs by
    taps (its SVD): the first O rows are the best single components. dtype of `w`. Raises K001 for
    more components than there are, K002 unless `w` is finite.
    """
    outputs, inputs, *taps = w.shape
    u, s, v = svd(finite("outputs_svd", w).flatten(2))
    most = outputs * s.shape[1]
    require(1 <= count <= most, "outputs_svd", f"{count} rows are outside 1..{most}")
    root = s.sqrt()
    mixes = (u * root[:, None, :]).permute(2, 0, 1).reshape(-1, inputs)[:count]
    filters = (root[:, :, None] * v).transpose(0, 1).flatten(0, 1)[:count]
    return mixes[:, :, None, None].to(w.dtype), filters.reshape(count, 1, *taps).to(w.dtype)


def centre_taps(channels: int, rows: int, columns: int) -> Tensor:
    """Depthwise `[channels, 1, rows, columns]`, float64, that gives what it reads in its middle."""
    taps = torch.zeros(channels, 1, rows, columns, dtype=torch.float64)
    taps[:, :, rows // 2, columns // 2] = 1
    return taps


def filled(w: Tensor, count: int) -> Tensor:
    """`w [O, M, ...]` with zeros behind: `[O, count, ...]`. Raises K001 for fewer than M."""
    require(count >= w.shape[1], "filled", f"{count} are fewer than {w.shape[1]}")
    more = w.new_zeros(w.shape[0], count - w.shape[1], *w.shape[2:])
    return torch.cat([w.detach(), more], 1)


def _over_patches(name: str, w: Tensor, moments: Tensor, mean: Tensor) -> Tensor:
    """Rows `[O, J]` that multiply a patch; a depthwise row is zero beside its own channel."""
    rows, width = finite(name, w).flatten(1), finite(name, moments).shape[-1]
    means = f"means {list(mean.shape)} do not fit moments {list(moments.shape)}"
    require(mean.shape == (1, width), name, means)
    if rows.shape[1] == width:
        return rows
    fits = moments.ndim == 2 and rows.numel() == width and w.shape[1] == 1
    require(fits, name, f"moments {list(moments.shape)} do not fit {list(w.shape)}")
    return torch.block_diag(*rows)


FUNCTIONS = (output_moments, pointwise_fit, outputs_svd, filled, centre_taps)
