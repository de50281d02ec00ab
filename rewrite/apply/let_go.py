"""What is dropped while one site is worked at: numbers in float64 are several times its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..match.site import Site
from ..measure.large_blocks import LARGE, give_back
from ..ops.call import tensor_at
from ..rules.facts import Facts
from .planned import Plan


def let_go_of_parts(site: Site, plan: Plan) -> None:
    """Drops what only the plan was made of, and of the plan's weights what they were cut from."""
    names, doubles, claimed = site.scope.names, site.scope.doubles, site.rule.claimed
    gone = [n for n, value in names.items() if isinstance(value, Tensor) and n not in claimed]
    size = sum(names.pop(name).nbytes for name in gone)
    for path in plan.moved.keys() & doubles.keys():
        del doubles[path]
    for planned in plan.ops:
        planned.params = {name: _alone(value) for name, value in planned.params.items()}
    if size >= LARGE:
        give_back()


def _alone(value: Any) -> Any:
    """`last[:, :R]` would keep all of `last`."""
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def round_off(module: fx.GraphModule, plan: Plan) -> int:
    """Rounds the weights of a verified plan, which were float64, as whoever runs it would do each
    time. Returns the bytes that it holds.
    """
    for path, value in plan.moved.items():
        plan.moved[path] = _rounded(value, tensor_at(module, path).dtype)
    held = [*plan.moved.values()]
    for planned in plan.ops:
        planned.params |= {n: _rounded(v, planned.stored(v)) for n, v in planned.tensors.items()}
        held += planned.tensors.values()
    return sum(value.nbytes for value in held)


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() and dtype.is_floating_point else value


def forget(site: Site) -> None:
    """Lets a site go: what was measured at it holds it, and it holds weights in float64, which
    would otherwise wait for the collector.
    """
    site.scope.facts = Facts()
    for held in (site.scope.names, site.scope.doubles):
        held.clear()
