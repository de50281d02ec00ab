"""Rules over ops: `match y = conv2d(...)` ... `rewrite { ... }`, one anchor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import fx

from ...grammar.tree import tree as t
from ..apply.cost import model_costs
from ..apply.engine import (
    VerifiedRewrite,
    anchor,
    apply,
    candidates,
    find,
    let_go,
    may_apply,
    measure_again,
    ready_at,
    refusal,
    time_rewrite,
)
from ..apply.let_go import round_off
from ..apply.surroundings import asked, unchanged
from ..graph.places import name_of, nodes_at
from ..graph.snapshot import finish, snapshot
from ..journal import Costs, Refused
from ..match.site import Site
from ..measure.large_blocks import giving_back
from ..rules.binding import GUARDS, OWNERS, PLAN, SHAPES, SITES, STRUCTURE, UNLESS, USES, NoMatch
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..torch_internals import is_erased, order_of
from .neighbours import Border, borders, losers
from .target import Condition, Target, guards, line


class OpTarget(Target[fx.Node, VerifiedRewrite]):
    """Candidates are the nodes that may be the rarest op of the pattern, its anchor."""

    local = True

    def __init__(self, state: State, rule: CompiledRule) -> None:
        super().__init__(state, rule)
        self.start = anchor(state, rule)
        self.done: list[Border] = []

    # -- applying ----------------------------------------------------------------------------------

    def candidates(self) -> list[fx.Node]:
        return candidates(self.state, self.rule)

    def alive(self, places: Sequence[fx.Node]) -> list[fx.Node]:
        """After a rollback the graph is a copy, in which nodes have the same names."""
        graph = self.state.module.graph
        if all(node.graph is graph for node in places):
            return [node for node in places if not is_erased(node)]
        names = {node.name for node in places}
        return [node for node in self.candidates() if node.name in names]

    def weigh(self, place: fx.Node) -> VerifiedRewrite | NoMatch:
        """Verified at once: weights are in float64 until then, and wait in their own precision."""
        with giving_back():
            found = ready_at(self.state, self.rule, place, self.start)
        self.state.samples.leave(_seen_by(place))
        return found

    def commit(self, stage: str, ready: VerifiedRewrite, seconds: float) -> None:
        if ready.timed is not None and ready.timed.edges:
            self.done += borders(self.state.view, ready)
        apply(self.state, stage, ready, seconds)

    def look_ahead(self, places: Sequence[fx.Node]) -> None:
        """Approximate rules measure what sites see: one pass through the model serves several of
        those whose first guards hold.
        """
        if self.rule.kind == "approx":
            near = (n for n in places if may_apply(self.state, self.rule, n, self.start))
            self.state.samples.go_on(self.state.module)
            self.state.samples.look_ahead(map(_seen_by, near))

    def stands(self, ready: VerifiedRewrite) -> bool:
        return self._as_prepared(ready) and not self._sees_others(ready)

    def weigh_again(self, place: fx.Node, ready: VerifiedRewrite) -> VerifiedRewrite | NoMatch:
        """Its plan is right as long as the graph around it and its weights are; then only what it
        promises is measured anew.
        """
        if not self._as_prepared(ready):
            self.forget(ready)
            found = self.weigh(place)
            if not isinstance(found, NoMatch):
                found.timed = ready.timed  # sizes and settings are what they were
            return found
        self.state.samples.go_on(self.state.module)
        found = measure_again(self.state, ready)
        self.state.samples.leave(_seen_by(place))
        if isinstance(found, NoMatch):
            self.forget(ready)
        return found

    def time(self, ready: VerifiedRewrite) -> VerifiedRewrite | NoMatch:
        return time_rewrite(self.state, ready)

    def slower(self, waiting: Sequence[VerifiedRewrite]) -> list[VerifiedRewrite]:
        graph = self.state.module.graph
        self.done = [
            border
            for border in self.done
            if all(node.graph is graph and not is_erased(node) for node in border.across)
        ]
        return losers(self.state.view, waiting, self.done)

    def may_outgrow(self, ready: VerifiedRewrite) -> bool:
        """Weights that several sites read count with the last of them, and answers about the model
        may be others now.
        """
        return ready.read.repeats or ready.read.asked != asked(self.state, ready.site)

    def hold(self, ready: VerifiedRewrite) -> int:
        emitted = (value for made in ready.emitted.values() for value in made.params.values())
        new = sum(value.nbytes for value in emitted if value is not None)
        return new + round_off(self.state.module, ready.plan)

    def forget(self, ready: VerifiedRewrite) -> None:
        let_go(ready)

    def _as_prepared(self, ready: VerifiedRewrite) -> bool:
        """Whether the site has its plan yet, and nothing of the graph that led to it changed."""
        return ready.held and unchanged(self.state, ready.site, ready.read)

    def _sees_others(self, ready: VerifiedRewrite) -> bool:
        """Whether its promises were measured on other values than it sees now."""
        if not (self.state.verify and self.rule.measures):
            return False
        first = self.state.changes.since(ready.when)
        return first is not None and any(order_of(n) >= first for n in ready.site.inputs)

    def fresh(self, tried: Sequence[fx.Node]) -> list[str]:
        old, start = set(tried), anchor(self.state, self.rule)
        new = (node for node in self.candidates() if node not in old)
        found = (find(self.state, self.rule, node, start) for node in new)
        return [site.name for site in found if isinstance(site, Site)]

    # -- measuring ---------------------------------------------------------------------------------

    @classmethod
    @contextmanager
    def apart(cls, state: State) -> Iterator[None]:
        """The state works on a copy of the graph, since a rewrite changes the one that it is made
        in; and on the graph itself again afterwards.
        """
        kept, events = state.module, len(state.journal.events)
        state.reset(snapshot(kept))
        try:
            yield
        finally:
            del state.journal.events[events:]
            state.reset(kept)
            state.samples.forget()

    def with_one(self, ready: VerifiedRewrite) -> tuple[fx.GraphModule, Costs]:
        apply(self.state, "apart", ready, 0.0)
        finish(self.state.module)
        return self.state.module, model_costs(self.state.module, self.state.view)

    # -- telling -----------------------------------------------------------------------------------

    def name(self, place: fx.Node) -> str:
        return name_of(place)

    @property
    def kind(self) -> str:
        return "any op" if self.start.ops is None else " or ".join(sorted(self.start.ops))

    def at(self, places: Sequence[fx.Node], path: str) -> list[fx.Node]:
        """Those whose match could hold a node that lies there."""
        wanted = nodes_at(self.state.module.graph.nodes, path)
        return [node for node in places if _near(node, wanted, self.rule.pattern.reach - 1)]

    def conditions(self) -> Iterator[Condition]:
        rule = self.rule
        for depth, step in enumerate(rule.pattern.order(self.start)):
            yield (STRUCTURE, depth), "match", line(step.op.source)
        inner = [name for op in rule.pattern.ops for name in op.targets if name not in rule.outputs]
        if inner:
            yield (USES, 0), "uses", f"nothing else reads {', '.join(inner)}"
        yield (USES, 1), "effects", "nothing between the matched ops computes in place"
        settings = [keyword for op in rule.pattern.ops for keyword in op.source.attrs]
        if settings:
            yield (SHAPES, 0), "settings", "; ".join(map(line, settings))
        if rule.pattern.shapes:
            yield (SHAPES, 1), "shapes", "; ".join(map(line, rule.pattern.shapes))
        if rule.at or rule.pattern.sites:
            globs = [f'at "{rule.at}"'] if rule.at else []
            yield (SITES, 0), "site", "; ".join([*globs, *map(line, rule.pattern.sites)])
        for number, clause in enumerate(rule.source.all(t.Unless)):
            yield (UNLESS, number), "unless", line(clause)
        yield (OWNERS, 0), "owner", "its weights serve nothing else"
        yield (GUARDS, 0), "fresh", "not made by this rule itself"
        yield from guards(rule)
        yield (PLAN, 0), "plan", "; ".join(map(line, rule.claims)) or "the rewrite can be placed"

    def source(self, place: fx.Node, miss: NoMatch) -> str:
        return super().source(place, miss) or str(place.meta.get("source") or "")

    def refused(self, stage: str, place: fx.Node, miss: NoMatch) -> Refused:
        return refusal(stage, self.rule, place, miss)


def _seen_by(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a site that is anchored at a node asks samples of, most likely."""
    return tuple(value for value in node.all_input_nodes if value.op != "get_attr")


def _near(node: fx.Node, wanted: set[fx.Node], reach: int) -> bool:
    """Whether a match that is anchored at `node` could hold one of the `wanted` nodes."""
    found, edge = {node}, [node]
    for _ in range(reach):
        around = (other for n in edge for other in (*n.all_input_nodes, *n.users))
        edge = [other for other in dict.fromkeys(around) if other not in found]
        found.update(edge)
    return not found.isdisjoint(wanted)
