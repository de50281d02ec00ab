"""How far a perturbation moves what a site gives: its relative L2 error on calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..match.site import Site
from ..rules.state import State
from .perturbed import run_perturbed
from .planned import Plan
from .run import Env, operand_value, run_nodes, run_plan, weights_read
from .verify import named_weights


def site_error(state: State, site: Site, plan: Plan) -> tuple[Callable[[str], float], int]:
    """A function from an output's name to its relative L2 error under the perturbation, and the
    number of samples.

    Both sides run on what the matched ops see on the calibration inputs, in the model's own
    precision.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in site.outputs}
    count = 0
    for values in state.samples.seen(state.module, site.inputs):
        tensors = (v for v in values.values() if isinstance(v, Tensor) and v.dim())
        count += next((int(v.shape[0]) for v in tensors), 0)
        before, after = _both_sides(state.module, site, plan, values)
        for name, node in site.outputs.items():
            new = after[node] if plan.perturbs else operand_value(plan.outputs[name], after)
            found[name].append(squares(before[node], new))

    return lambda name: relative(found[name]), count


def _both_sides(
    module: fx.GraphModule, site: Site, plan: Plan, values: Mapping[fx.Node, Any]
) -> tuple[Env, Env]:
    """The matched nodes as they are, and perturbed; without `perturb`, the rewrite."""
    named = named_weights(site, plan)
    held = weights_read(module, named, {}, None)
    before = run_nodes(module, site.nodes, {**values, **held}, {}, None)
    if not plan.perturbs:
        return before, run_plan(plan, dict(before), None)
    held = weights_read(module, named, plan.moved, None)
    return before, run_perturbed(module, site, plan, {**values, **held}, plan.moved, None)


AT_ONCE = 1 << 18
"""Numbers that are widened to float64 at a time."""


def squares(reference: Tensor, value: Tensor) -> tuple[float, float]:
    """||value - reference||^2 and ||reference||^2, in float64."""
    apart = size = 0.0
    pairs = zip(reference.flatten().split(AT_ONCE), value.flatten().split(AT_ONCE), strict=True)
    for old, new in pairs:
        apart += float((new.double() - old.double()).square().sum())
        size += float(old.double().square().sum())
    return apart, size


def relative(found: Sequence[tuple[float, float]]) -> float:
    """The relative L2 distance of all parts together; 0 for zeros on both sides."""
    apart, size = (math.sqrt(sum(part[at] for part in found)) for at in (0, 1))
    return apart / max(size, torch.finfo(torch.float64).tiny)
