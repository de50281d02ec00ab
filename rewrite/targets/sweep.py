"""Cuts that are planned one upon the other, on one copy of the model and one analysis of it, and
then verified together: one cut model beside one masked model.

Where that fails, the cuts are halved until the first one with which it fails is found. Those before
it stand, it is verified alone, and those behind it are planned anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from ...grammar.diagnostics import LissomError
from ..apply.cost import RunningCosts
from ..channels.classes import DimClass
from ..channels.flow import Flow
from ..channels.update_after_cut import CutEffect, Shrinking, cut_and_carry
from ..journal import Costs, Verdict
from ..measure.large_blocks import large_blocks_reused
from ..rules.binding import NoMatch, left_for
from ..rules.global_ranking import Survey
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..torch_internals import order_of
from .check import broken_claim, promised
from .dims import DimSite, examined, key_of

MEASURED = frozenset({"error", "equal", "latency", "drift", "drop", "model"})
"""What a claim cannot ask while cuts are only planned: it needs the model before and after."""


def one_by_one(rule: CompiledRule) -> bool:
    """Whether each cut has to be measured by itself."""
    return not rule.claimed.isdisjoint(MEASURED)


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """A cut that was made in the copy. changed: the nodes whose values have other shapes since.
    claims: what the rule promises of costs, and keeps.
    """

    site: DimSite
    before: Costs
    after: Costs
    changed: tuple[str, ...]
    claims: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class TriedCut:
    """What became of one candidate while cuts were planned. found: None where it is gone."""

    place: DimClass
    found: PlannedCut | NoMatch | None
    seconds: float


class Sweep:
    """Cuts of one rule in a copy of the working model. dims: the classes that it has. survey: gives
    the scores of all of them, for rules that ask. made: the sites that were cut. places: where they
    are among those that were `tried`.
    """

    def __init__(
        self,
        state: State,
        rule: CompiledRule,
        dims: Sequence[DimClass],
        survey: Callable[[], Survey],
    ) -> None:
        self.state, self.rule, self.survey = state, rule, survey
        self.before = state.features()
        self.dims = {key_of(dim): dim for dim in dims}
        self.tried: list[TriedCut] = []
        self.made: list[DimSite] = []
        self.places: list[int] = []

    def plan(self, places: Sequence[DimClass], most: float, tell: Callable[[int], None]) -> None:
        """Tries candidates in their order, until `most` were cut."""
        with self.in_hand(), large_blocks_reused():
            for number, place in enumerate(places, 1):
                if len(self.made) >= most:
                    break
                tell(number)
                begun = time.perf_counter()
                found = self._planned(place)
                self.tried.append(TriedCut(place, found, time.perf_counter() - begun))

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """While it lasts, guards and scores see the copy as it is by then."""
        state = self.state
        kept = state.module, state.view, state.flow
        try:
            self._begin()
            yield
        finally:
            state.module, state.view, state.flow = kept
            state.samples.forget()

    def _begin(self) -> None:
        """A new copy, without what was removed by now."""
        self.model = Shrinking(self.before)
        if self.made:
            self.model.cut(_removed(self.made))
        state, flow = self.state, self.model.flow
        state.module, state.view, state.flow = self.model.module, flow.view, flow
        self.costs = RunningCosts(self.model.module, flow.view)
        self.values = {n.name: n.meta.get("val") for n in self.model.module.graph.nodes}
        state.samples.forget()

    # -- one candidate -----------------------------------------------------------------------------

    def _planned(self, place: DimClass) -> PlannedCut | NoMatch | None:
        dim = self.dims.get(key_of(place))
        if dim is None:
            return None
        try:
            site = examined(self.state, self.rule, dim, self.survey)
            return site if isinstance(site, NoMatch) else self.cut(site)
        except LissomError as error:
            left = left_for(error, self.rule.source.name.span, None)
            if left is None:
                raise
            return left

    def cut(self, site: DimSite) -> PlannedCut | NoMatch:
        """One more, where the rule keeps what it promises."""
        before = self.costs.costs
        change = self.model.cut(site.removed)
        after = self.costs.update(change.nodes, change.gone)
        try:
            claims = self._claims(site, before, after)
        except LissomError:
            self._begin()
            raise
        broken = broken_claim(self.rule, claims)
        if broken is not None:
            self._begin()
            return broken
        self.made.append(site)
        self.places.append(len(self.tried))
        self.state.samples.forget(min(map(order_of, change.nodes), default=()))
        self._dims_before, self.regrouped = self.dims, len(change.moved) > 0
        self.dims = dict(self.dims)
        del self.dims[key_of(site.dim)]
        if len(change.moved):
            self._regroup(change.moved)
        return PlannedCut(site, before, after, self._changed(change), claims)

    def _regroup(self, moved: Tensor) -> None:
        """Leaves that belong together in another way now: all of a class, or none."""
        leaves = set(moved.tolist())
        left = {key: dim for key, dim in self.dims.items() if leaves.isdisjoint(dim.leaves[:1])}
        self.dims = left | {key_of(dim): dim for dim in self.model.classes(moved)}

    def take_back(self) -> None:
        """The last cut is none."""
        self.made.pop()
        self.places.pop()
        self.dims = self._dims_before
        self._begin()

    def _claims(self, site: DimSite, before: Costs, after: Costs) -> tuple[Verdict, ...]:
        if not self.state.verify:
            return ()
        return promised(site, site.left(self.model.flow), before, after, [0], {})

    def _changed(self, change: CutEffect) -> tuple[str, ...]:
        now = {node.name: node for node in change.nodes}
        names = [
            origin
            for name, node in now.items()
            if name in self.values and self.values[name] != node.meta.get("val")
            for origin in node.meta.get("origins") or (name,)
        ]
        for node in change.gone:
            self.values.pop(node.name, None)
        self.values |= {name: node.meta.get("val") for name, node in now.items()}
        return tuple(sorted(set(names)))


# -- together --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """How many cuts are verified together next, at most. at_fault: the class that is verified
    alone.
    """

    most: float
    at_fault: object = None


@dataclass(frozen=True, slots=True)
class Proven:
    """Candidates whose cuts hold together. flow: what is known of the model with all of them.
    sites: where they are. verdict: None where nothing was cut or verified.
    """

    tried: Sequence[TriedCut]
    flow: Flow
    sites: Sequence[DimSite] = ()
    verdict: Verdict | None = None


Proof = Callable[[Sequence[DimSite], Flow], Verdict | None]
"""Whether some cuts are right together, in the model that they make; None where they are not."""


def proven(sweep: Sweep, proof: Proof, batch: Batch) -> tuple[Batch, Proven]:
    """The candidates up to the first cut with which the proof fails, and how to go on. After a
    fault the next batch is as large as what held, then twice as large, and so on: many faults cost
    about as much as verifying one by one.
    """
    made = sweep.made
    if not made:
        return batch, Proven(sweep.tried, sweep.before)
    flow = sweep.model.finished()
    if not sweep.state.verify:
        return batch, Proven(sweep.tried, flow, made)
    verdict = proof(made, flow)
    if verdict is not None:
        return Batch(2 * batch.most), Proven(sweep.tried, flow, made, verdict)
    count, flow, verdict = _longest(sweep, proof)
    front = sweep.places[count]
    fault = key_of(sweep.tried[front].place)
    held = Proven(sweep.tried[:front], flow, made[:count], verdict)
    return Batch(count + 1, fault), held


def _longest(sweep: Sweep, proof: Proof) -> tuple[int, Flow, Verdict | None]:
    """How many of the first cuts hold together, of cuts that all together do not."""
    made, held, fails = sweep.made, 0, len(sweep.made)
    flow_of_held, said = sweep.before, None
    while fails - held > 1:
        middle = (held + fails) // 2
        flow = cut_and_carry(sweep.before, _removed(made[:middle]))
        verdict = proof(made[:middle], flow)
        if verdict is None:
            fails = middle
        else:
            held, flow_of_held, said = middle, flow, verdict
    return held, flow_of_held, said


def _removed(sites: Sequence[DimSite]) -> list[int]:
    return [leaf for site in sites for leaf in site.removed]
