"""What cuts would save, found out on one copy of the model: each is made there and taken back."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from torch import fx

from ..apply.cost import RunningCosts
from ..channels.cut import Steps, begun, shrink
from ..channels.flow import Flow
from ..channels.undo import Mark
from ..graph.index import GraphView
from ..journal import Costs


@dataclass(frozen=True, slots=True)
class Weighed:
    """What the whole model costs without some features, and before. reached: the nodes and
    parameters that have to do with them; what the cut saves changes only where one of these does.
    """

    before: Costs
    after: Costs
    reached: frozenset[Hashable]


class Weighing:
    """The model of `flow` without the leaves in `gone`."""

    def __init__(self, flow: Flow, gone: Collection[int] = ()) -> None:
        self.flow, self.gone = flow, set(gone)
        self._begin()

    def _begin(self) -> None:
        self.work = begun(self.flow)
        if self.gone:
            shrink(self.work, self.gone)
        self.view = GraphView(self.work.module, self.flow.view.vocabulary)
        self.costs = RunningCosts(self.work.module, self.view)

    def cut(self, removed: Collection[int]) -> None:
        """They are gone for good."""
        self.gone |= set(removed)
        steps = shrink(self.work, removed)
        self._count(self._changed(steps), self.work.dropped)

    def weigh(self, removed: Collection[int]) -> Weighed:
        """What the model costs without them, too. Raises as `cut` does (`channels/cut.py`)."""
        before, mark = self.costs.costs, Mark(self.work)
        steps = shrink(self.work, removed)
        nodes, work = self._changed(steps), self.work
        reached = frozenset((*(work.reach.place[node] for node in steps.nodes), *steps.tensors))
        weighed = Weighed(before, self._count(nodes, work.dropped), reached)
        if work.dropped:  # it is a shuffle that went, or what an earlier cut had put in
            self._begin()
        else:
            self._take_back(mark, nodes)
            self.costs.costs = before
        return weighed

    def _take_back(self, mark: Mark, nodes: list[fx.Node]) -> None:
        fresh = list(self.work.fresh)
        for node in nodes:
            self.view.forget(node)
        mark.undo()
        again = [node for node in nodes if node not in fresh]
        for node in again:
            self.view.add(node)
        self.costs.update(again, fresh)

    def _changed(self, steps: Steps) -> list[fx.Node]:
        work = self.work
        return [*work.fresh, *(work.new[node] for node in steps.nodes if node not in work.gone)]

    def _count(self, nodes: list[fx.Node], gone: list[fx.Node]) -> Costs:
        for node in (*gone, *nodes):
            self.view.forget(node)
        for node in nodes:
            self.view.add(node)
        return self.costs.update(nodes, gone)
