"""Bounds in another unit than what they bound: `drop(accuracy) <= 5` for 5 %, `params(model) <= 50`
for 50 %. Such a promise holds whatever happens, or never.
"""

from __future__ import annotations

from typing import Any

from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t
from ..journal import Costs

COSTS = ("params", "bytes", "macs", "ops")

FEW = 100
"""A share is at most this many hundredths, and no one asks for a model so many times smaller."""


def require_unit(condition: t.Expr, original: Costs) -> None:
    """Raises D008 for a cost of the model that may be no larger than a number of hundredths."""
    name, bound = _bounded(condition)
    if name not in COSTS or not 1 <= bound <= FEW:
        return
    cost = getattr(original, name)
    if cost > FEW * bound:
        raise _refused(condition, f"the model has {cost:,}", bound)


def require_possible(condition: t.Expr, reference: float) -> None:
    """Raises D008 for a drop that no model can exceed: a metric between 0 and 1 cannot fall by
    more than it is. reference: the metric of the original model.
    """
    name, bound = _bounded(condition)
    if name == "drop" and 1 <= bound <= FEW and 0 <= reference <= 1:
        raise _refused(condition, f"the metric of the original is {reference:.4g}", bound)


def _bounded(condition: t.Expr) -> tuple[str, float]:
    """The function of `f(...) <= N` and N; a share has a unit and is none."""
    if not isinstance(condition, t.Binary) or condition.op not in ("<", "<="):
        return "", 0.0
    call, bound = condition.left, condition.right
    called = call.function if isinstance(call, t.Call) else None
    if not isinstance(called, t.Name) or not isinstance(bound, t.Number):
        return "", 0.0
    return called.text, float(bound.value)


def _refused(condition: t.Expr, why: str, bound: Any) -> Exception:
    assert isinstance(condition, t.Binary)
    said, share = condition.span.text, f"{bound:g}%"
    left = condition.left.span.flat
    place = Label(condition.right.span, f"a share is written {share}")
    hint = f"write `{left} {condition.op} {share}`"
    return fail("D008", f"`{said}` says nothing in this unit: {why}", place, help=hint)
