"""Low-rank factors of linear and convolution weights, and the rank to keep.

Eckart and Young 1936 (the truncated SVD is the best approximation of its rank); Jaderberg, Vedaldi,
Zisserman 2014 (spatial factors, arXiv:1405.3866); Zhang, Zou, He, Sun 2015 (factors that preserve
responses, arXiv:1505.06798); Kim et al. 2016 (Tucker-2, arXiv:1511.06530); De Lathauwer, De Moor,
Vandewalle 2000 (HOSVD and its iteration HOOI).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import finite, halves, pivot_sign, require, wide

RIDGE = 1e-12
"""Share of the mean input power added to every direction: unseen ones are ranked by the weights."""
MAX_SWEEPS = 10
CONVERGED = 1e-6
"""HOOI ends when a sweep gains less than this share of the energy."""
SLACK = 1e-9
"""Relative room for rounding where a rank meets its bound exactly."""


# -- which rank ------------------------------------------------------------------------------------


def rank_for_energy(s: Tensor, energy: float) -> int:
    """The least rank, at least 1, at which `s [R]` holds `energy` (0..1) of its sum of squares.

    What is dropped is summed from the small end, where a running sum from the top would cancel. The
    bound has a billionth of slack, so that 90% of ten equal values are nine of them.
    """
    require(0 <= energy <= 1, "rank_for_energy", f"energy {energy} is outside 0..1")
    require(s.numel() > 0, "rank_for_energy", "there are no singular values")
    dropped = _tails(s)
    allowed = (1 - energy) * (1 + SLACK) * dropped[0]
    return max(1, int((dropped > allowed).sum()))


def _tails(s: Tensor) -> Tensor:
    """Entry r is the energy lost when the r largest singular values are kept."""
    return wide(s).square().flip(0).cumsum(0).flip(0)


def rank_for_share(share: float | None, per: int, full: int) -> int | None:
    """The greatest rank, at least 1, that costs at most `share` (0..1) of `full` at `per` a rank.

    None without a share.
    """
    if share is None:
        return None
    require(0 < share <= 1, "rank_for_share", f"share {share} is outside 0..1")
    return max(1, int(share * full / per * (1 + SLACK)))


# -- a convolution as KxL, then 1x1 ----------------------------------------------------------------


def channel_svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(last [O, R, 1, ...], s [R], first [R, I, ...])` of `w [O, I, ...]`, s falling.

    `last[:, :r]` after `first[:r]` is the best weight of rank r, up to R = min(O, I * taps); the
    root of each singular value goes to either side. dtype of `w`. Raises K002 unless `w` is finite.
    """
    return _factors(w, *halves(finite("channel_svd", w)))


def _factors(w: Tensor, last: Tensor, s: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    last = last.reshape(*last.shape, *[1] * (w.ndim - 2))
    first = first.reshape(-1, *w.shape[1:])
    return last.to(w.dtype), s.to(w.dtype), first.to(w.dtype)


def channel_join(last: Tensor, first: Tensor) -> Tensor:
    """What `first [R, I, ...]`, then `last [O, R, 1, ...]` equal: `[O, I, ...]`, rounded once."""
    require(
        last.shape[1] == first.shape[0] and last.numel() == last.shape[0] * last.shape[1],
        "channel_join",
        f"{list(first.shape)} then {list(last.shape)} do not compose",
    )
    product = wide(last).flatten(1) @ wide(first).flatten(1)
    return product.reshape(last.shape[0], *first.shape[1:]).to(last.dtype)


# -- with the least error of the output ------------------------------------------------------------


def whitened_svd(w: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(last [O, O], s [O], first [O, I])` of `w [O, I]` for inputs x with `moments` = E[x x^T].

    `last[:, :r] @ first[:r]` is the rank-r weight with the least mean of |(w - w') x|^2. It is
    u u^T w, where u are the first r eigenvectors of w moments w^T: the principal directions of the
    output. With C C^T = moments it equals the whitened truncation (w C)_r C^-1, but needs neither C
    nor its inverse, so inputs that never vary do no harm. `s[i]^2` is the mean output power in
    direction i.

    Zhang et al. 2015; the same optimum in DRONE (Chen et al., NeurIPS 2021) and SVD-LLM (Wang et
    al., ICLR 2025, arXiv:2403.07378). dtype of `w`. Raises K001 if `moments` is not `[I, I]`, K002
    unless all is finite.
    """
    matrix, seen = finite("whitened_svd", w), finite("whitened_svd", moments)
    require(
        seen.shape == (matrix.shape[1], matrix.shape[1]),
        "whitened_svd",
        f"second moments {list(seen.shape)} do not fit {matrix.shape[1]} inputs",
    )
    ridge = RIDGE * seen.diagonal().mean().clamp(min=torch.finfo(seen.dtype).tiny)
    power, u = _principal(matrix @ seen @ matrix.T + ridge * (matrix @ matrix.T))
    return u.to(w.dtype), power.sqrt().to(w.dtype), (u.T @ matrix).to(w.dtype)


def whitened_channel_svd(w: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`whitened_svd` of a convolution: `(last [O, O, 1, ...], s [O], first [O, I, ...])`.

    `moments` is `[J, J]`, J = I * taps, over the patches of the input in the order of `unfold`.
    """
    last, s, first = whitened_svd(w.flatten(1), moments)
    return _factors(w, last, s, first)


def _principal(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[M]`, falling and not negative, and eigenvectors `[M, M]` with fixed signs.

    Of a Gram matrix they are the squared singular values and the left singular vectors of what it
    comes from: far faster for a wide matrix, and complete where it has fewer columns than rows.
    """
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    vectors = vectors.flip(1)
    return values.flip(0).clamp(min=0), vectors * pivot_sign(vectors)


# -- a convolution as Kx1 then 1xL -----------------------------------------------------------------


def spatial_svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`(last [O, R, 1, L], s [R], first [R, I, K, 1])` of `w [O, I, K, L]`, R = min(I * K, O * L).

    Truncated as `last[:, :r]`, `first[:r]` they are the best pair of that width: the weight as a
    matrix, (I, K) by (O, L), has rank r exactly if it is such a pair. dtype of `w`. Raises K002
    unless `w` is finite.
    """
    outputs, inputs, height, width = w.shape
    pairs = finite("spatial_svd", w).permute(1, 2, 0, 3)
    left, s, right = halves(pairs, 2)
    first = left.T.reshape(-1, inputs, height, 1)
    last = right.reshape(-1, outputs, 1, width).transpose(0, 1)
    return last.contiguous().to(w.dtype), s.to(w.dtype), first.to(w.dtype)


def spatial_join(last: Tensor, first: Tensor) -> Tensor:
    """What `first [R, I, K, 1]`, then `last [O, R, 1, L]` equal: `[O, I, K, L]`, rounded once."""
    require(
        last.shape[1] == first.shape[0] and first.shape[3] == 1 and last.shape[2] == 1,
        "spatial_join",
        f"{list(first.shape)} then {list(last.shape)} do not compose",
    )
    product = torch.einsum("orl,rik->oikl", wide(last).squeeze(2), wide(first).squeeze(3))
    return product.to(last.dtype)


# -- a convolution as 1x1, KxL, 1x1 ----------------------------------------------------------------


def mode_svd(w: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values `so [O]`, `si [I]` of `w [O, I, ...]` unfolded by outputs and by inputs."""
    dense = finite("mode_svd", w).flatten(2)
    by_output = _principal(_gram(dense))[0].sqrt()
    by_input = _principal(_gram(dense.transpose(0, 1)))[0].sqrt()
    return by_output.to(w.dtype), by_input.to(w.dtype)


def _gram(dense: Tensor) -> Tensor:
    """`[M, M]` products of the slices of `dense [M, ...]`."""
    rows = dense.flatten(1)
    return rows @ rows.T


def tucker2_ranks(so: Tensor, si: Tensor, energy: float) -> tuple[int, int]:
    """Ranks (outputs, inputs) that keep `energy` (0..1): each mode may lose half of the rest.

    The squared error of a truncated HOSVD is at most the sum of what the modes drop.
    """
    each = 1 - (1 - energy) / 2
    return rank_for_energy(so, each), rank_for_energy(si, each)


def tucker2_ranks_for_share(
    so: Tensor, si: Tensor, share: float | None, first: int, core: int, last: int, full: int
) -> tuple[int, int] | None:
    """The ranks (P, Q) that keep most within `share` (0..1) of the cost `full`.

    They cost `first * Q + core * P * Q + last * P`. Both modes are held to one level of loss, which
    rises from nothing until the cost fits; (1, 1) if it never does. None without a share.
    """
    if share is None:
        return None
    lost_out, lost_in = (_tails(s) / _tails(s)[0].clamp(min=1e-300) for s in (so, si))
    levels = torch.cat([lost_out, lost_in, lost_out.new_zeros(1)]).unique()
    p = (lost_out > levels[:, None]).sum(dim=1).clamp(min=1)
    q = (lost_in > levels[:, None]).sum(dim=1).clamp(min=1)
    fits = (first * q + core * p * q + last * p) <= share * full
    at = int(fits.to(torch.int8).argmax()) if bool(fits.any()) else -1
    return int(p[at]), int(q[at])


def tucker2(w: Tensor, p: int, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """1x1, core and 1x1 weights whose composition is near `w [O, I, ...]`.

    They are `first [q, I, 1, ...]`, `core [p, q, ...]` and `last [O, p, 1, ...]`. HOOI starts at
    the HOSVD and alternates best subspaces until the kept energy stops growing, so it is never
    worse than the HOSVD. The outer factors are orthonormal. dtype of `w`. Raises K001 unless 1 <= p
    <= O and 1 <= q <= I, K002 unless `w` is finite.
    """
    outputs, inputs = w.shape[:2]
    require(1 <= p <= outputs, "tucker2", f"output rank {p} is outside 1..{outputs}")
    require(1 <= q <= inputs, "tucker2", f"input rank {q} is outside 1..{inputs}")
    dense = finite("tucker2", w).flatten(2)
    left, right = _iterate(dense, p, q)
    core = torch.einsum("oit,op,iq->pqt", dense, left, right)
    ones = [1] * (w.ndim - 2)
    first = right.T.reshape(q, inputs, *ones)
    last = left.reshape(outputs, p, *ones)
    return first.to(w.dtype), core.reshape(p, q, *w.shape[2:]).to(w.dtype), last.to(w.dtype)


def _iterate(dense: Tensor, p: int, q: int) -> tuple[Tensor, Tensor]:
    """HOOI on `dense [O, I, taps]` from the HOSVD: orthonormal `[O, p]` and `[I, q]`."""
    left, right = dense[:, :0], _principal(_gram(dense.transpose(0, 1)))[1][:, :q]
    enough, kept = CONVERGED * float(dense.square().sum()), -1.0
    for _ in range(MAX_SWEEPS):
        left = _principal(_gram(torch.einsum("oit,iq->oqt", dense, right)))[1][:, :p]
        power, right = _principal(_gram(torch.einsum("oit,op->ipt", dense, left)))
        right = right[:, :q]
        before, kept = kept, float(power[:q].sum())
        if kept - before <= enough:
            break
    return left, right


def tucker2_join(first: Tensor, core: Tensor, last: Tensor) -> Tensor:
    """What 1x1 `first`, `core` and 1x1 `last` of `tucker2` equal: `[O, I, ...]`, rounded once."""
    require(
        core.shape[0] == last.shape[1] and core.shape[1] == first.shape[0],
        "tucker2_join",
        f"{list(first.shape)}, {list(core.shape)}, {list(last.shape)} do not compose",
    )
    left, right = wide(last).flatten(1), wide(first).flatten(1)
    dense = torch.einsum("op,pqt,qi->oit", left, wide(core).flatten(2), right)
    return dense.reshape(last.shape[0], first.shape[1], *core.shape[2:]).to(core.dtype)


FUNCTIONS = (
    rank_for_energy, rank_for_share, channel_svd, channel_join, whitened_svd, whitened_channel_svd,
    spatial_svd, spatial_join, mode_svd, tucker2_ranks, tucker2_ranks_for_share, tucker2,
    tucker2_join,
)  # fmt: skip
