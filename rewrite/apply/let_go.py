"""What is dropped while one site is worked at: numbers in float64 are several times its weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..match.site import Site
from ..measure.large_blocks import LARGE, give_back
from .plan import Plan


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


def forget(site: Site) -> None:
    """Lets a site go: what was measured at it holds it, and it holds weights in float64, which
    would otherwise wait for the collector.
    """
    for held in (site.scope.facts, site.scope.names, site.scope.doubles):
        held.clear()
