"""The cuts of an `each`, made one upon the other in a copy of the model and verified together.

Which one is next is decided by what cuts save or move, which the copy says; whether they are right
is asked once, when the step ends. Where they are not, the step is run again, cut by cut.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from ..journal import Applied, Costs, Verdict
from ..rules.binding import NoMatch
from .dims import DimSite
from .sweep import PlannedCut, Sweep
from .weighing import Weighed, Weighing

NEAR = frozenset(
    ("boundary", "blocker", "sliceable", "gathers", "writers", "readers", "riders", "params")
    + ("scales", "size", "numel", "rank", "shape", "survivors", "known")
)
"""Questions whose answers hang on the dimension and what carries it alone."""


class Ahead:
    """What was cut, on the copy of `sweep`. touched: when something was cut that a node or a
    parameter has to do with. events: where the cuts stand in the journal.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.state = sweep, sweep.state
        self.weighing = Weighing(sweep.before)
        self.touched: dict[Hashable, int] = {}
        self.regrouped = 0
        self.events: list[int] = []

    # -- one cut -----------------------------------------------------------------------------------

    def cut(self, site: DimSite) -> PlannedCut | NoMatch:
        """Makes one more in the copy; the reason where the rule does not keep what it promises."""
        return self.sweep.cut(site)

    def commit(self, event: Applied, site: DimSite, reached: frozenset[Hashable]) -> None:
        """Writes it down."""
        self.events.append(len(self.state.journal.events))
        self.state.journal.add(event)
        self.weighing.cut(site.removed)
        self._changed(self.sweep.costs.costs)
        now = self.state.changes.now
        self.touched |= dict.fromkeys(reached, now)
        if self.sweep.regrouped:
            self.regrouped = now

    def take_back(self) -> None:
        """The last cut is none."""
        self.events.pop()
        self.sweep.take_back()
        self.weighing = Weighing(
            self.sweep.before, [leaf for site in self.sweep.made for leaf in site.removed]
        )
        self._changed(self.sweep.costs.costs)

    def _changed(self, costs: Costs) -> None:
        self.state.changes.everywhere()
        self.state.costs = self.state.version, costs

    def stands(self, site: DimSite, weighed: Weighed, when: int) -> bool:
        """Whether nothing has changed that a site read, or that says what its cut saves."""
        last = max((self.touched.get(one, 0) for one in weighed.reached), default=0)
        return site.scope.asked <= NEAR and max(last, self.regrouped) <= when

    # -- all ---------------------------------------------------------------------------------------

    def tell(self, equal: Verdict) -> None:
        """Writes the verdict on all of them to each."""
        events = self.state.journal.events
        for place in self.events:
            event = events[place]
            assert isinstance(event, Applied)
            events[place] = replace(event, verdicts=(equal, *event.verdicts))
