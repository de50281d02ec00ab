"""Rules over dimensions: `match dim D in channels` ... `D := keep`, one class at a time.

A site is a dimension class. `perturb { zero(readers(D), outside = keep) }` gives the masked model,
the rewrite cuts it, and both must be equal on the whole model's inputs. Nothing of the working
model changes before the commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial

from torch import Tensor, fx

from ...grammar.diagnostics import LissomError
from ..channels.classes import DimClass, classes
from ..channels.flow import Flow
from ..channels.listing import dims_at, reason_of, source_of
from ..graph.memory import mutations
from ..graph.snapshot import finish
from ..journal import Costs
from ..rules.binding import NoMatch, left_for
from ..rules.global_ranking import Scoring, Survey
from ..rules.rule import CompiledRule
from ..rules.state import State
from .ahead import Ahead
from .check import WholeTarget
from .cuts import DimReady, FeatureTrial, applied, proof, said_together
from .dims import DimSite, examined, key_of, lies_in
from .sweep import Batch, PlannedCut, Proven, Sweep, one_by_one, proven
from .target import Attempt, Condition, Rank, change_conditions, change_rank, line
from .weighing import Weighing

# -- the target ------------------------------------------------------------------------------------


class FeatureTarget(WholeTarget[DimClass, DimReady]):
    """Candidates are the dimension classes of the present graph, in its order."""

    def __init__(self, state: State, rule: CompiledRule) -> None:
        super().__init__(state, rule)
        self.known: tuple[Flow, list[DimClass]] | None = None
        self.batch = Batch(math.inf)
        self.ahead: Ahead | None = None
        self._weighing: Weighing | None = None

    def _classes(self) -> list[DimClass]:
        if self.ahead is not None:
            return list(self.ahead.sweep.dims.values())
        flow = self.state.features()
        if self.known is None or self.known[0] is not flow:
            self.known = flow, classes(flow)
        return self.known[1]

    def candidates(self) -> list[DimClass]:
        flow, at = self.state.features(), self.rule.at
        return [dim for dim in self._classes() if at is None or lies_in(flow, dim, at)]

    def alive(self, places: Sequence[DimClass]) -> list[DimClass]:
        """Classes keep their places when others are cut."""
        now = self._by_key()
        return [now[key_of(dim)] for dim in places if key_of(dim) in now]

    def _by_key(self) -> Mapping[object, DimClass]:
        if self.ahead is not None:
            return self.ahead.sweep.dims
        return {key_of(dim): dim for dim in self._classes()}

    def prepare_next(
        self, places: Sequence[DimClass], most: int | None, tell: Callable[[int], None]
    ) -> list[Attempt[DimClass, DimReady]]:
        """All of them, planned one upon the other and verified together; those in front of the
        first at which that fails, which is verified alone then.
        """
        if not one_by_one(self.rule) and key_of(places[0]) != self.batch.at_fault:
            sweep = Sweep(self.state, self.rule, self._classes(), lambda: self.scores)
            sweep.plan(places, min(self.batch.most, math.inf if most is None else most), tell)
            self.batch, found = proven(sweep, partial(proof, self.state), self.batch)
            if found.tried:
                return self._outcomes(found)
        return super().prepare_next(places, most, tell)

    def _outcomes(self, whole: Proven) -> list[Attempt[DimClass, DimReady]]:
        state, count = self.state, len(whole.sites)
        equal = () if whole.verdict is None else (said_together(whole.verdict, count),)
        removed = [leaf for site in whole.sites for leaf in site.removed]
        outcomes = []
        for one in whole.tried:
            found = one.found
            if isinstance(found, PlannedCut):
                trial = FeatureTrial(state, found.site, removed)
                trial.flow = whole.flow
                known = found.before, found.after, state.changes.now, False
                verdicts = (*equal, *found.claims)
                found = DimReady(trial, *known, verdicts, found.changed)
            outcomes.append(Attempt(one.place, found, one.seconds))
        return outcomes

    def prepare(self, place: DimClass) -> DimReady | NoMatch:
        found = self._or_reason(lambda: self._examined(place, self._made))
        return found if isinstance(found, NoMatch) else self.verify(found)

    def weigh(self, place: DimClass) -> DimReady | NoMatch:
        return self._or_reason(lambda: self._examined(place, self._weighed))

    def _examined(
        self, place: DimClass, ready: Callable[[DimSite], DimReady]
    ) -> DimReady | NoMatch:
        site = examined(self.state, self.rule, place, lambda: self.scores)
        return site if isinstance(site, NoMatch) else ready(site)

    def _made(self, site: DimSite) -> DimReady:
        return DimReady.of(FeatureTrial(self.state, site, site.removed))

    def _weighed(self, site: DimSite) -> DimReady:
        """Without making it."""
        found, now = self._scales().weigh(site.removed), self.state.changes.now
        trial = FeatureTrial(self.state, site, site.removed)
        trial.costs = found.before, found.after
        ready = DimReady(trial, *trial.costs, now, "model" in site.scope.asked)
        ready.weighed = found
        return ready

    def _scales(self) -> Weighing:
        """On the present model."""
        if self.ahead is not None:
            return self.ahead.weighing
        flow = self.state.features()
        if self._weighing is None or self._weighing.flow is not flow:
            self._weighing = Weighing(flow)
        return self._weighing

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
        started, old = time.perf_counter(), self.state.module
        if self.ahead is None and ready.flow is not self.state.flow:
            self._goes_on(ready.flow)
        changed = reshaped(old, self.state.module) if ready.changed is None else ready.changed
        event = applied(stage, ready, changed, seconds + time.perf_counter() - started)
        if self.ahead is None:
            self.state.journal.add(event)
        else:
            assert ready.weighed is not None
            self.ahead.commit(event, ready.site, ready.weighed.reached)

    def _goes_on(self, flow: Flow) -> None:
        state = self.state
        state.module, state.view, state.flow = flow.view.root, flow.view, flow
        state.mutations = mutations(state.module)
        state.changes.everywhere()
        state.samples.forget()

    # -- ahead -------------------------------------------------------------------------------------

    def together(self, steps: Callable[[], object]) -> bool:
        """Not where a promise of the rule needs the model before and after each cut."""
        if one_by_one(self.rule):
            return False
        sweep = Sweep(self.state, self.rule, self._classes(), lambda: self.scores)
        try:
            with sweep.in_hand():
                ahead = self.ahead = Ahead(sweep)
                steps()
            return self._adopted(ahead)
        except LissomError:
            return False
        finally:
            self.ahead = None
            self.state.changes.everywhere()

    def _adopted(self, ahead: Ahead) -> bool:
        """Whether all cuts are right together; then the cut model becomes the working one."""
        made = ahead.sweep.made
        if not made:
            return True
        flow = ahead.sweep.model.finished()
        if self.state.verify:
            verdict = proof(self.state, made, flow)
            if verdict is None:
                return False
            ahead.tell(said_together(verdict, len(made)))
        self._goes_on(flow)
        return True

    def verify(self, ready: DimReady) -> DimReady | NoMatch:
        ahead = self.ahead
        if ahead is None:
            return super().verify(ready)
        found = self._or_reason(lambda: ahead.sweep.cut(ready.site))
        if isinstance(found, NoMatch):
            return found
        ready.before, ready.after = found.before, found.after
        ready.verdicts, ready.changed = found.claims, found.changed
        return ready

    def way_back(self) -> Callable[[], None]:
        return super().way_back() if self.ahead is None else self.ahead.take_back

    def stands(self, ready: DimReady) -> bool:
        if super().stands(ready):
            return True
        if self.ahead is None or not ready.held or ready.weighed is None:
            return False
        measured = ready.tried.is_measured
        return not measured and self.ahead.stands(ready.site, ready.weighed, ready.when)

    def measure(self, ready: DimReady) -> DimReady | NoMatch:
        if self.ahead is not None:
            self.ahead.sweep.model.settle()
        return super().measure(ready)

    def hold(self, ready: DimReady) -> int:
        """Cuts that were only weighed hold what their rule computed."""
        if self.ahead is None and "flow" in vars(ready.tried):
            return super().hold(ready)
        names, doubles = ready.site.scope.names.values(), ready.site.scope.doubles
        doubles.clear()
        return sum(value.nbytes for value in names if isinstance(value, Tensor))

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
