"""What `each ... order by` may name, and how sites are ranked by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..measure.latency import Saving
from ..rules.binding import PLAN, NoMatch
from ..targets.target import Prepared, Target

SLOWER = "B004"


@dataclass(frozen=True)
class Order:
    """rank: the largest goes first. measure: finds out what it is of, or why a site is left, where
    weighing a site does not say it. together: whether steps may be weighed in a copy of the model,
    which is not run. settle: which of all that wait are to be left, and why, given the others.
    """

    rank: Callable[[Prepared], float]
    measure: Callable[[Target[Any, Any], Any], Any] | None = None
    together: bool = True
    settle: Callable[[Target[Any, Any], Sequence[Any]], list[tuple[Any, NoMatch]]] | None = None


def _saved(ready: Prepared) -> float:
    return 0.0 if ready.timed is None else ready.timed.saved


def _timed(target: Target[Any, Any], ready: Prepared) -> Prepared | NoMatch:
    """What was decided before is not measured again: that may come out another way."""
    decided = target.state.decided
    if decided is None:
        return target.time(ready)
    number = decided.get((ready.site.rule.label, ready.site.name))
    if number is None:
        return _left(ready, f"not faster: {ready.site.name} was left when the plan was made")
    ready.timed = Saving(0.0, 0.0, (-number, -number))
    return ready


def _slower(
    target: Target[Any, Any], waiting: Sequence[Prepared]
) -> list[tuple[Prepared, NoMatch]]:
    if target.state.decided is not None:
        return []
    return [(ready, _left(ready, _said(ready))) for ready in target.slower(waiting)]


def _said(ready: Prepared) -> str:
    """`slower: fc takes 0.42 ms in place of 0.31`."""
    timed = ready.timed
    assert timed is not None
    how = "slower" if timed.saved < 0 else "no faster than the measurement varies"
    return f"{how}: {ready.site.name} takes {timed}"


def _left(ready: Prepared, text: str) -> NoMatch:
    return NoMatch(PLAN, 0, lambda: text, ready.site.rule.source.name.span, None, SLOWER)


ORDERS: Mapping[str, Order] = {
    "saving": Order(lambda ready: ready.saving),
    "macs": Order(lambda ready: ready.before.macs - ready.after.macs),
    "sensitivity": Order(
        lambda ready: -ready.sensitivity, lambda target, ready: target.measure(ready)
    ),
    "latency": Order(_saved, _timed, together=False, settle=_slower),
}
