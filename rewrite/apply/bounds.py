"""Certified bounds: how far a perturbed weight can move what its layer gives, for any input.

A convolution or linear gives, at each position, `W v` of the values `v` that it reads there. So a
weight that moves by `D` moves the result by at most `||D|| ||v||`, with the spectral norm of `D`
(Golub and Van Loan, Matrix Computations, section 2.3.2). For a truncated SVD this norm is the first
singular value left out (Eckart and Young 1936); the bound needs no SVD and holds for any change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..journal import Verdict, VerdictKind
from ..match.site import Site
from ..ops.call import OpCall
from .planned import Plan

LARGEST_GRAM = 2048
"""Rows of the largest Gram matrix whose eigenvalues are worth their time; past it, the Frobenius
norm bounds the spectral one.
"""

ROUNDING = 1 + 1e-9
"""Room for the rounding of the norm itself, in float64."""

CLAIM = "no input moves the layer by more than this share of |weight| |input|"


def weight_bounds(site: Site, plan: Plan) -> tuple[Verdict, ...]:
    """One verdict for each perturbed weight of a layer that is linear in it and in its input. None
    where another input is given, too: what that does, no norm says.
    """
    if plan.exchanged:
        return ()
    return tuple(verdict for call in site.calls for verdict in _of_call(call, plan))


def _of_call(call: OpCall, plan: Plan) -> Iterator[Verdict]:
    path = call.params.get("weight")
    if path not in plan.moved or not {"linear_in_x", "linear_in_weight"} <= call.op.traits:
        return
    if any(other in plan.moved for name, other in call.params.items() if name != "weight"):
        return  # a bias that moves too is no part of the product
    weight, moved = call.tensor("weight"), plan.moved[path]
    assert weight is not None
    apart, kind = norm(weight.detach().to(torch.float64, copy=True).sub_(moved), call)
    whole, _ = norm(weight, call)
    where = call.node.meta.get("site") or call.node.name
    said = f"`{where}` reads v: its result moves by at most {apart:.4g} |v| ({kind} norm)"
    yield Verdict(
        CLAIM,
        "proved",
        True,
        worst=apart / whole if whole else 0.0,
        detail=f"{said}, rounding aside; the weight's norm is {whole:.4g}",
        kind=VerdictKind.BOUND,
    )


def norm(weight: Tensor, call: OpCall) -> tuple[float, str]:
    """The norm of a weight as a map from what one position reads to what it gives, and its kind.

    weight: as the layer holds it, of any floating dtype. Groups are blocks of their own, whose
    largest norm counts.
    """
    blocks = _blocks(weight.detach().double(), call)
    if not blocks.numel():
        return 0.0, "spectral"
    if not all(map(math.isfinite, map(float, blocks.aminmax()))):  # isfinite() takes as much again
        return math.inf, "spectral"
    if min(blocks.shape[1:]) > LARGEST_GRAM:
        return float(blocks.flatten(1).norm(dim=1).max()) * ROUNDING, "Frobenius"
    thin = blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT
    largest = torch.linalg.eigvalsh(thin @ thin.mT)[:, -1].max()
    return float(largest.clamp_min(0).sqrt()) * ROUNDING, "spectral"


def _blocks(weight: Tensor, call: OpCall) -> Tensor:
    """Matrices [groups, outputs of a group, what an output reads].

    A transposed convolution holds its inputs on axis 0; an output position reads some of the taps,
    and dropping columns makes no norm larger.
    """
    groups = int(call.attrs.get("groups", 1))
    if call.outputs_first:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    inputs = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return inputs.transpose(1, 2).flatten(2)
