"""Whether two texts of a rule plan the same at one site: then the second is no mistake there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...apply.planned import Plan, Planned
from ...rules.scope import ParamRef


def same_plan(one: Plan, two: Plan) -> bool:
    """Whether they build the same ops with the same numbers, and move the same ones."""
    pairs: dict[Planned, Planned] = dict(zip(one.ops, two.ops, strict=False))
    return (
        len(one.ops) == len(two.ops)
        and all(_same_op(a, b, pairs) for a, b in pairs.items())
        and _same(one.outputs, two.outputs, pairs)
        and _same(one.moved, two.moved, pairs)
        and one.exchanged.keys() == two.exchanged.keys()
        and all(same_plan(plan, two.exchanged[node]) for node, plan in one.exchanged.items())
    )


def _same_op(one: Planned, two: Planned, pairs: Mapping[Planned, Planned]) -> bool:
    a, b = ((p.inputs, dict(p.params), dict(p.attrs), p.trained) for p in (one, two))
    return one.op is two.op and one.dtype == two.dtype and _same(a, b, pairs)


def _same(one: Any, two: Any, pairs: Mapping[Planned, Planned]) -> bool:
    """Of values in a plan; an op of the first stands for its partner in the second."""
    if isinstance(one, Planned):
        return pairs.get(one) is two
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, ParamRef):
        return one.path == two.path
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(_same(one[k], two[k], pairs) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(map(_same, one, two, [pairs] * len(one)))
    return one is two or (not isinstance(one, fx.Node) and bool(one == two))
