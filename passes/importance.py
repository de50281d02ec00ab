"""How much each feature of a dimension counts, from weights, activations or gradients.

Each function takes what `writers(D)`, `readers(D)`, `params(D)`, `scales(D)` or `activations(D)`
give: for each axis that carries the dimension the numbers of each feature, [features, numbers]. It
returns one score for each feature, [features], in float64; the lowest are the first to go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .tensors import require

BLOCK = 1 << 16
"""Numbers of which a score is computed at once."""

Slices = Sequence[Tensor]
"""None where nothing carries the dimension so; no score can be made of that."""


def l1_over(slices: Slices) -> Tensor:
    """Sum of magnitudes (Li et al. 2017, arXiv:1608.08710, section 3.1)."""
    return _added(
        "l1_over",
        [_of_rows(lambda rows: rows.abs().sum(1), part) for part in _some("l1_over", slices)],
    )


def l2_over(slices: Slices) -> Tensor:
    """Euclidean norm (He et al. 2018, arXiv:1808.06866, section 3.2)."""
    return _added(
        "l2_over",
        [_of_rows(lambda rows: rows.square().sum(1), part) for part in _some("l2_over", slices)],
    ).sqrt()


def median_over(slices: Slices) -> Tensor:
    """Distance to all other features: those near the geometric median can be told from others (He
    et al. 2019, arXiv:1811.00250, equation 4).
    """
    joined = torch.cat([part.flatten(1) for part in _some("median_over", slices)], 1)
    return torch.cdist(joined, joined).sum(1)


def activity_over(slices: Slices) -> Tensor:
    """Share of the activations that are not zero: one minus the average percentage of zeros, APoZ
    (Hu et al. 2016, arXiv:1607.03250, equation 1).
    """
    return _added(
        "activity_over", [(part != 0).double().mean(1) for part in _some("activity_over", slices)]
    )


def mean_over(slices: Slices) -> Tensor:
    """Mean magnitude of the activations (Molchanov et al. 2017, arXiv:1611.06440, section 2.2)."""
    return _added(
        "mean_over",
        [_of_rows(lambda rows: rows.abs().mean(1), part) for part in _some("mean_over", slices)],
    )


def taylor_over(slices: Slices, gradients: Slices) -> Tensor:
    """Squared first-order change of the loss when a feature goes: (sum of gradient times weight)^2
    (Molchanov et al. 2019, arXiv:1906.10771, equation 8).
    """
    pairs = _paired("taylor_over", slices, gradients)
    return _added("taylor_over", [(slope * part).sum(1) for part, slope in pairs]).square()


def hessian_over(slices: Slices, curvature: Slices) -> Tensor:
    """Second-order change of the loss when a feature goes, with a diagonal Hessian: half the sum of
    curvature times weight squared (LeCun et al. 1990, Optimal Brain Damage, equation 5).
    """
    pairs = _paired("hessian_over", slices, curvature)
    return _added("hessian_over", [(h * part.square()).sum(1) / 2 for part, h in pairs])


def normalized(score: Tensor) -> Tensor:
    """Scores as multiples of their mean, so that those of several dimensions can be compared."""
    return score / score.mean().clamp_min(torch.finfo(score.dtype).tiny)


def first(count: int) -> Tensor:
    """The first features count most: what a width multiplier keeps."""
    return -torch.arange(count, dtype=torch.float64)


def drawn(count: int, seed: int = 0) -> Tensor:
    """Random scores, the same for the same seed: the control of every pruning claim."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def top(score: Tensor, k: int) -> Tensor:
    """The positions of the `k` highest scores, int64 [k], ascending; the first of equal ones."""
    require(0 <= k <= len(score), "top", f"{k} of {len(score)} features")
    order = torch.argsort(score, descending=True, stable=True)
    return order[:k].sort().values


def _some(name: str, slices: Slices | None) -> Slices:
    fix = "guard what it is given, as in `known(writers(D))`"
    require(bool(slices), name, "no weight carries the dimension in this role", fix)
    return slices or ()


def _added(name: str, parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _of_rows(score: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """The scores of the rows of a part, some rows at a time: what is computed on the way is small
    then, and memory for it is at hand.
    """
    return torch.cat([score(rows) for rows in part.split(max(1, BLOCK // max(1, part.shape[1])))])


def _paired(name: str, slices: Slices, others: Slices) -> list[tuple[Tensor, Tensor]]:
    parts = _some(name, slices)
    same = [part.shape for part in parts] == [other.shape for other in _some(name, others)]
    require(same, name, "both arguments must be of the same axes", "gradients(writers(D))")
    return list(zip(parts, others, strict=True))


FUNCTIONS = (
    l1_over,
    l2_over,
    median_over,
    activity_over,
    mean_over,
    taylor_over,
    hessian_over,
    normalized,
    first,
    drawn,
    top,
)
