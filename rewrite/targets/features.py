"""Rules over dimensions: `match dim D in channels` ... `D := keep`, one class at a time.

A site is a dimension class. `perturb { zero(readers(D), outside = keep) }` gives the masked model,
the rewrite cuts it, and both must be equal on the whole model's inputs. Nothing of the working
model changes before the commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import fx, nn

from ...grammar.diagnostics import LissomError
from ...grammar.tree import tree as t
from ..channels.classes import DimClass, classes
from ..channels.flow import Flow
from ..channels.listing import dims_at, reason_of, source_of
from ..channels.masked import masked
from ..channels.update_after_cut import cut_and_carry
from ..graph.memory import mutations
from ..graph.runs import RunFailed
from ..graph.snapshot import finish
from ..journal import Applied, Costs, Verdict
from ..rules.binding import NoMatch, left_for
from ..rules.global_ranking import Scoring, Survey
from ..rules.rule import CompiledRule
from ..rules.state import State
from .check import Change, CutTrial, WholeTarget
from .dims import DimSite, examined, key_of, lies_in
from .sweep import Batch, PlannedCut, Proven, Sweep, one_by_one, proven
from .target import Attempt, Condition, Rank, change_conditions, change_rank, line

EXACT_CUT = "the cut equals the model in which every sum leaves the removed features out"


# -- verifying -------------------------------------------------------------------------------------


def _proof(state: State, sites: Sequence[DimSite], flow: Flow) -> Verdict | None:
    """What is known of several cuts at once: one model without all that they remove, beside one in
    which all of it is masked. None where these are not equal, or one of them does not run.
    """
    try:
        found = _trial(state, sites, flow).equality()
    except RunFailed:
        return None
    return found if found.holds else None


def _trial(state: State, sites: Sequence[DimSite], flow: Flow) -> _CutTrial:
    removed = [leaf for site in sites for leaf in site.removed]
    return _CutTrial(state, sites[0], flow.view, flow, removed)


def _said(verdict: Verdict, count: int) -> Verdict:
    """The verdict of one cut among several that were compared together."""
    if count == 1:
        return verdict
    others = "1 other" if count == 2 else f"{count - 1} others"
    return replace(verdict, detail=f"{verdict.detail}; together with {others}")


@dataclass
class _CutTrial(CutTrial[DimSite]):
    """A cut beside the masked model; beside the model itself where the rule perturbs nothing."""

    flow: Flow
    removed: Sequence[int]

    claim = EXACT_CUT
    remedy = "what is removed must not count: `perturb { zero(readers(D), outside = keep) }`"

    def perturbed(self) -> nn.Module:
        if self.site.rule.source.all(t.Perturb):
            return masked(self.state.features(), self.removed)
        return self.unchanged()

    def left(self) -> dict[str, Any]:
        return self.site.left(self.flow)


@dataclass(slots=True)
class DimReady(Change[_CutTrial]):
    """A cut that waits to be verified and committed; of cuts that were verified together, the model
    is the one after all of them. changed: see `reshaped`; None where that is still to be seen.
    """

    changed: tuple[str, ...] | None = None

    @property
    def site(self) -> DimSite:
        return self.tried.site

    @property
    def flow(self) -> Flow:
        return self.tried.flow


# -- the target ------------------------------------------------------------------------------------


class FeatureTarget(WholeTarget[DimClass, DimReady]):
    """Candidates are the dimension classes of the present graph, in its order."""

    def __init__(self, state: State, rule: CompiledRule) -> None:
        super().__init__(state, rule)
        self.known: tuple[Flow, list[DimClass]] | None = None
        self.batch = Batch(math.inf)

    def _classes(self) -> list[DimClass]:
        flow = self.state.features()
        if self.known is None or self.known[0] is not flow:
            self.known = flow, classes(flow)
        return self.known[1]

    def candidates(self) -> list[DimClass]:
        flow, at = self.state.features(), self.rule.at
        return [dim for dim in self._classes() if at is None or lies_in(flow, dim, at)]

    def alive(self, places: Sequence[DimClass]) -> list[DimClass]:
        """Classes keep their places when others are cut."""
        now = {key_of(dim): dim for dim in self._classes()}
        return [now[key_of(dim)] for dim in places if key_of(dim) in now]

    def prepare_next(
        self, places: Sequence[DimClass], most: int | None, tell: Callable[[int], None]
    ) -> list[Attempt[DimClass, DimReady]]:
        """All of them, planned one upon the other and verified together; those in front of the
        first at which that fails, which is verified alone then.
        """
        if not one_by_one(self.rule) and key_of(places[0]) != self.batch.at_fault:
            sweep = Sweep(self.state, self.rule, self._classes(), lambda: self.scores)
            sweep.plan(places, min(self.batch.most, math.inf if most is None else most), tell)
            self.batch, found = proven(sweep, partial(_proof, self.state), self.batch)
            if found.tried:
                return self._outcomes(found)
        return super().prepare_next(places, most, tell)

    def _outcomes(self, whole: Proven) -> list[Attempt[DimClass, DimReady]]:
        state, flow, count = self.state, whole.flow, len(whole.sites)
        equal = () if whole.verdict is None else (_said(whole.verdict, count),)
        removed = [leaf for site in whole.sites for leaf in site.removed]
        outcomes = []
        for one in whole.tried:
            found = one.found
            if isinstance(found, PlannedCut):
                trial = _CutTrial(state, found.site, flow.view, flow, removed)
                known = found.before, found.after, state.changes.now, False
                verdicts = (*equal, *found.claims)
                found = DimReady(trial, *known, verdicts, found.changed)
            outcomes.append(Attempt(one.place, found, one.seconds))
        return outcomes

    def weigh(self, place: DimClass) -> DimReady | NoMatch:
        return self._or_reason(lambda: self._cut(place))

    def _cut(self, place: DimClass) -> DimReady | NoMatch:
        site = examined(self.state, self.rule, place, lambda: self.scores)
        if isinstance(site, NoMatch):
            return site
        flow = cut_and_carry(self.state.features(), site.removed)
        return DimReady.of(_CutTrial(self.state, site, flow.view, flow, site.removed))

    @cached_property
    def scores(self) -> Survey:
        """The scores of all dimensions, taken once in a step."""
        scores = {}
        flow, at = self.state.features(), self.rule.at
        for dim in (d for d in classes(flow) if at is None or lies_in(flow, d, at)):
            try:
                examined(self.state, self.rule, dim, None)
            except Scoring as asked:
                if not dim.blocks:
                    scores[key_of(dim)] = asked.score
            except LissomError as error:  # it has no score: the others are ranked without it
                if left_for(error, self.rule.source.name.span, None) is None:
                    raise
        return Survey(scores)

    def commit(self, stage: str, ready: DimReady, seconds: float) -> None:
        """The cut model becomes the working one."""
        started = time.perf_counter()
        site, state, old = ready.site, self.state, self.state.module
        bindings = {site.rule.dim: f"{site.dim.size} -> {len(site.keep)}"}
        if ready.flow is not state.flow:
            state.module, state.view = ready.flow.view.root, ready.flow.view
            state.mutations = mutations(state.module)
            state.flow = ready.flow
            state.changes.everywhere()
            state.samples.forget()
        changed = reshaped(old, state.module) if ready.changed is None else ready.changed
        seconds += time.perf_counter() - started
        state.journal.add(
            Applied(
                stage,
                site.rule.label,
                site.name,
                site.rule.place,
                (),
                (),
                changed,
                ready.before,
                ready.after,
                ready.verdicts,
                bindings,
                seconds,
                tuple(dict.fromkeys(path for path, _ in site.dim.places)),
            )
        )

    def with_one(self, ready: DimReady) -> tuple[fx.GraphModule, Costs]:
        finish(self.state.module)
        return ready.model, ready.after

    # -- telling -----------------------------------------------------------------------------------

    kind = "any dimension"

    def name(self, place: DimClass) -> str:
        return place.name

    def at(self, places: Sequence[DimClass], path: str) -> list[DimClass]:
        return dims_at(places, path)

    def conditions(self) -> Iterator[Condition]:
        """What is asked after the guards is told apart by step."""
        return change_conditions(
            self.rule,
            ("cut", "nothing in the model keeps it from being cut"),
            ("keep", f"some features go and some stay: {line(self.rule.resize)}"),
        )

    def rank(self, miss: NoMatch) -> Rank:
        return change_rank(miss)

    def source(self, place: DimClass, miss: NoMatch) -> str:
        """The line of the op that keeps the dimension; else of the one that makes it."""
        flow = self.state.features()
        told = (reason_of(flow, block).source for block in place.blocks)
        return next(told, "") or source_of(flow, place)


def reshaped(old: fx.GraphModule, new: fx.GraphModule) -> tuple[str, ...]:
    """The nodes of the captured model whose values have other shapes now."""
    known = {node.name: node.meta.get("val") for node in old.graph.nodes}
    found = [n for n in new.graph.nodes if n.name in known and n.meta.get("val") != known[n.name]]
    names = (name for node in found for name in node.meta.get("origins") or (node.name,))
    return tuple(sorted(set(names)))
