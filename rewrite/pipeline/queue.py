"""The candidates that wait in an `each`, the best first.

Each is weighed once when the step begins. After that only what comes on top is looked at: if what
it read has changed, it is weighed again, and goes back if another is better now. So a step weighs
about as many candidates as there are, and once more for each that it applies.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..rules.binding import NoMatch
from ..targets.target import Prepared, Target

P = TypeVar("P")
R = TypeVar("R", bound=Prepared)

HELD = 1 << 28
"""Bytes of weighed rewrites that are held until their turn; the best one is held in any case."""

AGAIN = 2
"""Candidates that are measured again before one is applied. Errors are often close together, and
each application moves many a little.
"""


@dataclass(eq=False, slots=True)
class Waiting(Generic[P, R]):
    """One candidate, its place among all, and its rank when it was weighed."""

    place: P
    number: int
    ready: R
    rank: float
    bytes: int = 0

    def __lt__(self, other: Waiting[P, R]) -> bool:
        """The higher rank is first, and of equal ones the first in the model."""
        return (-self.rank, self.number) < (-other.rank, other.number)


@dataclass(eq=False)
class Queue(Generic[P, R]):
    """rank: the highest goes first. measure: finds out what the rank is of, or why the candidate is
    none, where weighing does not say it. settle: which of all that wait are to be left, and why,
    given the others; it may change what the rank is of. tried: is called before a candidate is
    weighed. told: is given what came out; gives None where the rule does not apply.
    """

    target: Target[P, R]
    rank: Callable[[R], float]
    measure: Callable[[R], R | NoMatch] | None
    tried: Callable[[], None]
    told: Callable[[P, R | NoMatch], R | None]
    settle: Callable[[Sequence[R]], Sequence[tuple[R, NoMatch]]] | None = None
    waiting: list[Waiting[P, R]] = field(default_factory=list)

    def fill(self, places: Iterable[P]) -> None:
        for number, place in enumerate(places):
            self.tried()
            ready = self.told(place, self._measured(self.target.weigh(place)))
            if ready is not None:
                self._push(Waiting(place, number, ready, self._rank(ready)))

    def places(self) -> list[P]:
        """What waits, in the order of the model."""
        return [one.place for one in sorted(self.waiting, key=lambda one: one.number)]

    def best(self) -> R | None:
        """Takes out the best candidate, verified in the present graph; None if none is left."""
        self._weigh_grown()
        while self.waiting:
            self._settle()
            one = self._top()
            if one is None:
                return None
            if not self._settle(one):
                continue
            ready = self.told(one.place, self.target.verify(one.ready))
            if ready is not None:
                return ready
            self.target.forget(one.ready)
        return None

    def _top(self) -> Waiting[P, R] | None:
        """Takes out the best of what was weighed in the present graph, as soon as nothing that
        waits had a higher rank; of measured ones, the best when `AGAIN` were measured.
        """
        current: list[Waiting[P, R]] = []
        while self.waiting and not (self.measure is not None and len(current) == AGAIN):
            one = heapq.heappop(self.waiting)
            if not self._is_current(one):
                continue
            heapq.heappush(current, one)
            if not self.waiting or not self.waiting[0] < current[0]:
                break
        best = heapq.heappop(current) if current else None
        for one in current:
            self._push(one)
        return best

    def let_go(self) -> None:
        """The graph that all this was weighed in is no more."""
        for one in self.waiting:
            self._forget(one)

    # -- inside ------------------------------------------------------------------------------------

    def _measured(self, found: R | NoMatch) -> R | NoMatch:
        if self.measure is None or isinstance(found, NoMatch):
            return found
        measured = self.measure(found)
        if isinstance(measured, NoMatch):
            self.target.forget(found)
        return measured

    def _rank(self, ready: R) -> float:
        """What cannot be measured goes last."""
        rank = self.rank(ready)
        return -math.inf if math.isnan(rank) else rank

    def _settle(self, top: Waiting[P, R] | None = None) -> bool:
        """Leaves what is not worth it; whether `top`, which was taken out, is none of it."""
        if self.settle is None:
            return True
        of = {id(one.ready): one for one in (*self.waiting, *((top,) if top else ()))}
        found = self.settle([one.ready for one in of.values()])
        left = [(of[id(ready)], miss) for ready, miss in found]
        for one, miss in left:
            self.told(one.place, miss)
            self._forget(one)
        gone = [one for one, _ in left]
        self.waiting = [one for one in self.waiting if one not in gone]
        for one in self.waiting:
            one.rank = self._rank(one.ready)
        heapq.heapify(self.waiting)
        return top not in gone

    def _is_current(self, one: Waiting[P, R]) -> bool:
        """Weighs a candidate again if it no longer stands; False where the rule applies no more."""
        if self.target.stands(one.ready):
            return True
        alive = self.target.alive([one.place])
        if not alive:
            return False
        one.place = alive[0]
        self.tried()
        found = self._measured(self.target.weigh_again(one.place, one.ready))
        ready = self.told(one.place, found)
        if ready is not None:
            one.ready, one.rank = ready, self._rank(ready)
        return ready is not None

    def _weigh_grown(self) -> None:
        """What may have become better than the best is not waited for."""
        grown = [one for one in self.waiting if self.target.may_outgrow(one.ready)]
        if grown:
            gone = [one for one in grown if not self._is_current(one)]
            self.waiting = [one for one in self.waiting if one not in gone]
            heapq.heapify(self.waiting)

    def _push(self, one: Waiting[P, R]) -> None:
        heapq.heappush(self.waiting, one)
        one.bytes = self.target.hold(one.ready)
        held = [other for other in self.waiting if other.bytes]
        total = sum(other.bytes for other in held)
        while total > HELD and len(held) > 1:
            worst = max(held)
            held.remove(worst)
            total -= worst.bytes
            self._forget(worst)

    def _forget(self, one: Waiting[P, R]) -> None:
        one.bytes = 0
        self.target.forget(one.ready)
