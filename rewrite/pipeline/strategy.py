"""Strategies: in which order sites are tried. `once`, `fixpoint`, `each .. order by .. until ..`,
`first`, `try`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t
from ..apply.engine import attempt
from ..journal import Calibrated, Refused
from ..measure.observing import calibrate
from ..rules.binding import NoMatch
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..targets.choose import kind_of, target_of
from ..targets.target import Attempt, Prepared, Target
from .gc import fewer_collections
from .loops import described_cycle
from .orders import Order
from .queue import Queue
from .remarks import tell_of_more
from .worklist import Worklist

P = TypeVar("P")
R = TypeVar("R", bound=Prepared)

CAP_PER_NODE = 10
CAP_LEAST = 1000
"""Applications allowed in one `fixpoint`: ten for each node, at least a thousand."""


@dataclass
class Runner:
    """Runs steps of one stage. `applied` counts rewrites; none is made once the state's fuel is
    spent. progress: is told what is done just now.
    """

    state: State
    stage: str
    applied: int = 0
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=64))
    progress: Callable[[str], None] = lambda text: None

    # -- once --------------------------------------------------------------------------------------

    @fewer_collections()
    def once(self, rules: Sequence[CompiledRule]) -> int:
        """Every candidate present at entry, at most once, in the order of the model."""
        before = self.applied
        for rule in rules:
            self._once(target_of(self.state, rule))
        return self.applied - before

    def _once(self, target: Target[Any, Any]) -> None:
        places, before = target.candidates(), self.applied
        target.look_ahead(places)
        rule, waiting = target.rule, places
        tell = partial(self._told, rule)
        while waiting and self.state.fuel != 0:
            outcomes = target.prepare_next(waiting, self.state.fuel, tell)
            waiting = waiting[len(outcomes) :]
            for outcome in outcomes:
                self._settle(target, outcome)
        if self.applied > before and rule.kind == "exact" and self.state.fuel is None:
            more = target.fresh(target.alive(places))
            tell_of_more(self.state.journal, self.stage, rule, more)

    def _settle(self, target: Target[P, R], outcome: Attempt[P, R]) -> None:
        """Commits what was prepared, or writes down why not."""
        journal, found = self.state.journal, outcome.found
        if found is None:
            return
        journal.tried[target.rule.label] += 1
        if isinstance(found, NoMatch):
            journal.add(target.refused(self.stage, outcome.place, found))
            return
        target.commit(self.stage, found, outcome.seconds)
        self._burn()

    def _prepared(self, target: Target[P, R], place: P) -> R | None:
        self._tried(target.rule)
        return self._or_told(target, place, target.prepare(place))

    def _or_told(self, target: Target[P, R], place: P, found: R | NoMatch) -> R | None:
        """What was found; why there is none goes into the journal."""
        if not isinstance(found, NoMatch):
            return found
        self.state.journal.add(target.refused(self.stage, place, found))
        return None

    def _tried(self, rule: CompiledRule) -> None:
        self._told(rule, 1)
        self.state.journal.tried[rule.label] += 1

    def _told(self, rule: CompiledRule, more: int) -> None:
        tried = self.state.journal.tried[rule.label] + more
        self.progress(f"{rule.name}, {tried} tried, {self.applied} rewritten")

    def calibrate(self, step: t.Calibrate) -> int:
        """Runs the data once and tells all observers what they saw; returns how many there are."""
        samples, name = self.state.samples, step.data.text
        batches = samples.batches(name, Label(step.span, "calibrates here"))

        def tell(done: int) -> None:
            self.progress(f"calibrate {name}, batch {done + 1} of {len(batches)}")

        begun = time.perf_counter()
        observers = calibrate(self.state.module, map(samples.args, batches), tell)
        seen, seconds = samples.count(batches), time.perf_counter() - begun
        self.state.journal.add(Calibrated(self.stage, name, seen, observers, seconds))
        return observers

    def _burn(self) -> None:
        self.applied += 1
        if self.state.fuel is not None:
            self.state.fuel -= 1

    # -- fixpoint ----------------------------------------------------------------------------------

    @fewer_collections()
    def fixpoint(self, rules: Sequence[CompiledRule], limit: int | None = None) -> int:
        """Applies the rules until none matches. Where a change is felt only near it, each node is
        tried again only when something near it changed.
        """
        if not all(kind_of(rule).local for rule in rules):
            return self._passes(rules, limit)
        work = Worklist(self.state, sorted(rules, key=lambda rule: (-rule.priority, rule.order)))
        cap = max(CAP_LEAST, CAP_PER_NODE * len(self.state.module.graph.nodes))
        before = self.applied
        while self.state.fuel != 0 and (node := work.pop()) is not None:
            for rule, start in work.rules_for(node):
                self._tried(rule)
                result = attempt(self.state, self.stage, rule, node, start)
                self.state.samples.leave(())
                if isinstance(result, NoMatch):
                    work.missed(rule, node, result)
                    continue
                self._count(rule, self.applied - before + 1, limit or cap)
                work.push(work.near([node, *result]))
                break
            if limit is not None and self.applied - before >= limit:
                break
        work.report(self.stage)
        return self.applied - before

    def _passes(self, rules: Sequence[CompiledRule], limit: int | None) -> int:
        """Passes over all candidates until one changes nothing. Each cut leaves fewer features."""
        before, last = self.applied, -1
        while last != self.applied and self.state.fuel != 0:
            last = self.applied
            self.once(rules)
            if limit is not None and self.applied - before >= limit:
                break
        return self.applied - before

    def _count(self, rule: CompiledRule, count: int, cap: int) -> None:
        self._burn()
        self.recent.append(rule.name)
        if count > cap:
            place = Label(rule.source.name.span, "still applying")
            hint = "make one direction `once`, or declare `recursive decreasing ...`"
            raise fail(
                "L004",
                f"stage `{self.stage}` did not come to an end after {cap} rewrites",
                place,
                note=f"looping: {described_cycle(tuple(self.recent))}",
                help=hint,
            )

    # -- each --------------------------------------------------------------------------------------

    @fewer_collections()
    def each(
        self,
        rule: CompiledRule,
        order: Order,
        done: Callable[[], bool],
        broken: Callable[[], str | None] = lambda: None,
    ) -> int:
        """Applies the best candidate, then the best of the rest, until `done` or none is left.

        The rank of a candidate is that of the graph in which it was weighed, and it is weighed
        again when it comes on top (`queue.py`). So what saves most goes first, as if all were
        ranked anew each time; where the rank is measured, the errors that are compared with that
        of the best may be from before the last rewrites. What is applied was always verified and
        measured on the graph as it is then.

        An application after which a budget is `broken` is taken back, and the others go on.
        Candidates that are left when the goal is reached are written down as not tried.
        """
        before, journal = self.applied, self.state.journal
        mark = len(journal.events), journal.tried.copy(), self.applied, self.state.fuel
        target, goal = target_of(self.state, rule), (order, done, broken)
        if not order.together or not target.together(lambda: self._best_first(target, *goal)):
            del journal.events[mark[0] :]
            journal.tried, self.applied, self.state.fuel = mark[1:]
            self._best_first(target_of(self.state, rule), *goal)
        return self.applied - before

    def _best_first(
        self,
        target: Target[P, R],
        order: Order,
        done: Callable[[], bool],
        broken: Callable[[], str | None],
    ) -> None:
        rule, ranked = target.rule, False
        places, tried = target.candidates(), partial(self._tried, rule)
        measure = None if order.measure is None else partial(order.measure, target)
        settle = None if order.settle is None else partial(order.settle, target)
        told = partial(self._or_told, target)
        queue: Queue[Any, Any] = Queue(target, order.rank, measure, tried, told, settle)
        while (places or queue.waiting) and self.state.fuel != 0 and not done():
            if not ranked:
                target.look_ahead(places)
                queue.fill(places)
                places, ranked = [], True
            best = queue.best()
            if best is not None and not self._apply_within(target, best, broken):
                queue.let_go()
        left = target.alive(queue.places())
        self._untried(rule, [target.name(place) for place in left])

    def _untried(self, rule: CompiledRule, sites: Sequence[str]) -> None:
        """Says which sites could still have been changed when the step ended."""
        place, why = str(rule.source.name.span), "not tried: the goal of the step was reached"
        for site in sites:
            self.state.journal.add(Refused(self.stage, rule.label, site, "B003", why, place))

    def _apply_within(
        self, target: Target[P, R], best: R, broken: Callable[[], str | None]
    ) -> bool:
        """Applies a site; takes it back, and says no, if that breaks a budget."""
        state, rule = self.state, best.site.rule
        back = target.way_back()
        place, site = str(rule.source.name.span), best.site.name
        target.commit(self.stage, best, 0.0)
        why = broken()
        if why is None:
            self._burn()
            return True
        state.journal.events.pop()
        back()
        state.journal.add(Refused(self.stage, rule.label, site, "B002", why, place))
        return False
