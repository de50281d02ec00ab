"""Strategies: in which order sites are tried. `once`, `fixpoint`, `each .. order by .. until ..`,
`first`, `try`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import fx

from ...grammar.diagnostics import Label, fail
from ..apply.engine import (
    VerifiedRewrite,
    alive,
    anchor,
    apply,
    attempt,
    candidates,
    forget,
    may_apply,
    ready_at,
    refuse,
)
from ..graph.snapshot import snapshot
from ..journal import Refused
from ..rules.binding import NoMatch
from ..rules.pattern import PatternOp
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..targets.choose import (
    Ranged,
    RangedReady,
    alive_ranged,
    apply_ranged,
    ranged_candidates,
    ranged_ready,
)
from ..torch_internals import is_erased
from .gc import fewer_collections
from .loops import described_cycle
from .remarks import tell_of_more
from .worklist import Worklist

CAP_PER_NODE = 10
CAP_LEAST = 1000
"""Applications allowed in one `fixpoint`: ten for each node, at least a thousand."""


@dataclass
class Runner:
    """Runs steps of one stage. `applied` counts rewrites; none is made once the state's fuel is
    spent. progress: is told which rule is tried, how many places so far, and the rewrites.
    """

    state: State
    stage: str
    applied: int = 0
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=64))
    progress: Callable[[str, int, int], None] = lambda rule, tried, applied: None

    # -- once --------------------------------------------------------------------------------------

    @fewer_collections()
    def once(self, rules: Sequence[CompiledRule]) -> int:
        """Every site present at entry, at most once, in graph order."""
        before = self.applied
        for rule in rules:
            if rule.dim:
                self._once_dims(rule)
                continue
            nodes = candidates(self.state, rule)
            start = anchor(self.state, rule)
            self._look_ahead(rule, nodes, start)
            applied = self.applied
            for node in nodes:
                if not is_erased(node) and self.state.fuel != 0:
                    self._try(rule, node, start)
            if self.applied > applied and rule.kind == "exact" and self.state.fuel is None:
                tell_of_more(self.state, self.stage, rule, alive(nodes))
        return self.applied - before

    def _once_dims(self, rule: CompiledRule) -> None:
        """The same for the dimension classes, or images, that the model has at entry."""
        self.state.surveys.clear()
        for dim in ranged_candidates(self.state, rule):
            for left in alive_ranged(self.state, rule, [dim]) if self.state.fuel != 0 else ():
                begun = time.perf_counter()
                found = self._dim_ready(rule, left)
                if found is not None:
                    apply_ranged(self.state, self.stage, found, time.perf_counter() - begun)
                    self._burn()

    def _dim_ready(self, rule: CompiledRule, dim: Ranged) -> RangedReady | None:
        self._tried(rule)
        found = ranged_ready(self.state, rule, dim)
        if not isinstance(found, NoMatch):
            return found
        place = str(found.span) if found.span is not None else ""
        refused = Refused(self.stage, rule.label, dim.name, found.code, found.text(), place)
        self.state.journal.add(refused)
        return None

    def _tried(self, rule: CompiledRule) -> None:
        self.state.journal.tried[rule.label] += 1
        self.progress(rule.name, self.state.journal.tried[rule.label], self.applied)

    def _burn(self) -> None:
        self.applied += 1
        if self.state.fuel is not None:
            self.state.fuel -= 1

    def _try(self, rule: CompiledRule, node: fx.Node, start: PatternOp) -> list[fx.Node] | None:
        self._tried(rule)
        seen = _seen_by(node)
        result = attempt(self.state, self.stage, rule, node, start)
        self.state.samples.leave(seen)
        if isinstance(result, NoMatch):
            refuse(self.state, self.stage, rule, node, result)
            return None
        self._burn()
        return result

    def _look_ahead(self, rule: CompiledRule, nodes: Sequence[fx.Node], start: PatternOp) -> None:
        """Approximate rules measure what sites see: one pass through the model serves several of
        those whose first guards hold.
        """
        if rule.kind == "approx":
            near = (node for node in nodes if may_apply(self.state, rule, node, start))
            self.state.samples.look_ahead(map(_seen_by, near))

    # -- fixpoint ----------------------------------------------------------------------------------

    @fewer_collections()
    def fixpoint(self, rules: Sequence[CompiledRule], limit: int | None = None) -> int:
        """Applies the rules until none matches. Each node is tried again only when something near
        it changed.
        """
        if any(rule.dim for rule in rules):
            return self._fixpoint_dims(rules, limit)
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

    def _fixpoint_dims(self, rules: Sequence[CompiledRule], limit: int | None) -> int:
        """Passes over all classes until one changes nothing. Each cut leaves fewer features."""
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
        rank: Callable[[VerifiedRewrite | RangedReady], float],
        done: Callable[[], bool],
        broken: Callable[[], str | None] = lambda: None,
    ) -> int:
        """Applies the best site, ranks the rest again, until `done` or no site is left.

        An application after which a budget is `broken` is taken back, and the others go on. Sites
        that are left when the goal is reached are written down as not tried.
        """
        before = self.applied
        if rule.dim:
            self._each_dim(rule, rank, done, broken)
            return self.applied - before
        start = anchor(self.state, rule)
        waiting, ranked = candidates(self.state, rule), False
        while waiting and self.state.fuel != 0 and not done():
            self._look_ahead(rule, alive(waiting), start)
            waiting, best = self._best(rule, alive(waiting), start, rank)
            ranked = True
            if best is not None and not self._apply_within(best, broken):
                names = {node.name for node in waiting}  # the graph is a copy now
                waiting = [n for n in candidates(self.state, rule) if n.name in names]
        self._untried(rule, [_site_of(node) for node in alive(waiting) if ranked])
        return self.applied - before

    def _untried(self, rule: CompiledRule, sites: Sequence[str]) -> None:
        """Says which sites could still have been changed when the step ended."""
        place, why = str(rule.source.name.span), "not tried: the goal of the step was reached"
        for site in sites:
            self.state.journal.add(Refused(self.stage, rule.label, site, "B003", why, place))

    def _best(
        self,
        rule: CompiledRule,
        nodes: Sequence[fx.Node],
        start: PatternOp,
        rank: Callable[[VerifiedRewrite | RangedReady], float],
    ) -> tuple[list[fx.Node], VerifiedRewrite | None]:
        """The nodes at which the rule applies but for the best, and the best. Of the others no
        weights are kept.
        """
        others: list[fx.Node] = []
        first, best, most = None, None, -math.inf
        for node in nodes:
            found = self._ready(rule, node, start)
            if found is None:
                continue
            others.append(node)
            worse = found if best is not None and rank(found) <= most else best
            if worse is not found:
                first, best, most = node, found, rank(found)
            if worse is not None:
                forget(worse.site)
        return [node for node in others if node is not first], best

    def _each_dim(
        self,
        rule: CompiledRule,
        rank: Callable[[VerifiedRewrite | RangedReady], float],
        done: Callable[[], bool],
        broken: Callable[[], str | None],
    ) -> None:
        self.state.surveys.clear()
        waiting, ranked = ranged_candidates(self.state, rule), False
        while waiting and self.state.fuel != 0 and not done():
            ready = [found for dim in waiting if (found := self._dim_ready(rule, dim)) is not None]
            ranked = True
            if not ready:
                return
            best = max(ready, key=rank)
            left = [found.site.dim for found in ready if found is not best]
            self._apply_within(best, broken)
            waiting = alive_ranged(self.state, rule, left)
        self._untried(rule, [dim.name for dim in waiting if ranked])

    def _apply_within(
        self, best: VerifiedRewrite | RangedReady, broken: Callable[[], str | None]
    ) -> bool:
        """Applies a site; takes it back if that breaks a budget."""
        state, rule = self.state, best.site.rule
        entry = snapshot(state.module)
        place, site = str(rule.source.name.span), best.site.name
        if isinstance(best, VerifiedRewrite):
            apply(state, self.stage, best, 0.0)
        else:
            apply_ranged(state, self.stage, best, 0.0)
        why = broken()
        if why is None:
            self._burn()
            return True
        state.journal.events.pop()
        state.reset(entry)
        state.samples.forget()
        state.journal.add(Refused(self.stage, rule.label, site, "B002", why, place))
        return False

    def _ready(self, rule: CompiledRule, node: fx.Node, start: PatternOp) -> VerifiedRewrite | None:
        self._tried(rule)
        found = ready_at(self.state, rule, node, start)
        self.state.samples.leave(_seen_by(node))
        if isinstance(found, NoMatch):
            refuse(self.state, self.stage, rule, node, found)
            return None
        return found


def _site_of(node: fx.Node) -> str:
    return str(node.meta.get("site") or node.name)


def _seen_by(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a site that is anchored at a node asks samples of, most likely."""
    return tuple(value for value in node.all_input_nodes if value.op != "get_attr")
