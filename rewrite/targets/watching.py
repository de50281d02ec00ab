"""Rules that observe: `attach histogram() on x as x.range`, at matched ops or at values.

Nothing of the model changes. What was attached lies in the graph, where `calibrate` finds it and
later rules read it (`measure/observing.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.tree import tree as t
from ..apply.cost import present_costs
from ..apply.engine import find
from ..graph.snapshot import snapshot
from ..journal import Attached, Costs, Verdict
from ..match.site import Site
from ..measure.latency import Saving
from ..measure.observing import Watched, hang, key, number_of, watched_at
from ..ops.call import OpCall
from ..rules.binding import PLAN, NoMatch, left_for
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State
from .dims import guard_miss
from .ops import OpTarget
from .target import Condition, Rank, Target
from .values import ValueTarget, scope_of

Observers = dict[fx.Node, dict[str, Watched]]


@dataclass(slots=True)
class WatchSite:
    """Where a rule that observes matches."""

    rule: CompiledRule
    name: str
    scope: Scope


@dataclass(slots=True)
class Attachment:
    """Observers that wait to be attached; they cost nothing and change nothing."""

    site: WatchSite
    attached: Observers
    before: Costs
    after: Costs
    when: int
    held: bool = True
    verdicts: tuple[Verdict, ...] = ()
    saving: int = field(init=False, default=0)
    sensitivity: float = field(init=False, default=0.0)
    timed: Saving | None = field(init=False, default=None)


class WatchTarget(Target[fx.Node, Attachment]):
    """Candidates are those of a rule over ops, or of one over values; inputs of the model are
    values here, too.
    """

    def __init__(self, state: State, rule: CompiledRule) -> None:
        super().__init__(state, rule)
        self.inner = ValueTarget(state, rule) if rule.value else OpTarget(state, rule)

    def candidates(self) -> list[fx.Node]:
        return self.inner.candidates()

    def alive(self, places: Sequence[fx.Node]) -> list[fx.Node]:
        return self.inner.alive(places)

    def weigh(self, place: fx.Node) -> Attachment | NoMatch:
        try:
            site = self._site(place)
            return site if isinstance(site, NoMatch) else self._planned(site, place)
        except LissomError as error:
            left = left_for(error, self.rule.source.name.span, place)
            if left is None:
                raise
            return left

    def _site(self, place: fx.Node) -> WatchSite | NoMatch:
        if not self.rule.value:
            found = find(self.state, self.rule, place)
            return found if isinstance(found, NoMatch) else _of_ops(found)
        scope = scope_of(self.state, self.rule, place)
        return guard_miss(self.rule, scope) or WatchSite(self.rule, self.name(place), scope)

    def _planned(self, site: WatchSite, place: fx.Node) -> Attachment | NoMatch:
        attached = attachments(site.scope, self.rule)
        if all(watched_at(node).items() >= more.items() for node, more in attached.items()):
            text, span = "its observers are attached", self.rule.source.name.span
            return NoMatch(PLAN, 0, lambda: text, span, place, "R015")
        costs = present_costs(self.state)
        return Attachment(site, attached, costs, costs, self.state.changes.now)

    def time(self, ready: Attachment) -> Attachment:
        """The model is as it was."""
        return ready

    def commit(self, stage: str, ready: Attachment, seconds: float) -> None:
        for node, more in ready.attached.items():
            hang(node, more)
        rule = self.rule
        self.state.journal.add(Attached(stage, rule.label, ready.site.name, rule.place))

    def forget(self, ready: Attachment) -> None:
        ready.held = False

    def with_one(self, ready: Attachment) -> tuple[fx.GraphModule, Costs]:
        return snapshot(self.state.module), ready.after

    # -- telling -----------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        return self.inner.kind

    def name(self, place: fx.Node) -> str:
        return self.inner.name(place)

    def at(self, places: Sequence[fx.Node], path: str) -> list[fx.Node]:
        return self.inner.at(places, path)

    def conditions(self) -> Iterator[Condition]:
        yield from self.inner.conditions()

    def rank(self, miss: NoMatch) -> Rank:
        return self.inner.rank(miss)


def _of_ops(site: Site) -> WatchSite:
    return WatchSite(site.rule, site.name, site.scope)


def attachments(scope: Scope, rule: CompiledRule) -> Observers:
    """What the rule attaches at one site. Raises R016 for what is no observer."""
    found: Observers = {}
    for step in (s for r in rule.source.all(t.Rewrite) for s in r.steps):
        assert isinstance(step, t.Attach)
        holder, on = scope.names[step.path.parts[0].text], scope.names[step.on.text]
        of_op, name = isinstance(holder, OpCall), step.path.parts[1].text
        node = holder.node if isinstance(holder, OpCall) else holder
        observer = scope.number(step.observer)
        if not hasattr(observer, "begin"):
            label = Label(step.observer.span, f"this is a {type(observer).__name__}")
            help = "attach min_max(), moving_average(), histogram() or channel_peaks()"
            raise fail("R016", "only an observer can be attached", label, help=help)
        if not isinstance(node, fx.Node) or not isinstance(on, fx.Node):
            label = Label(step.span, "attached here")
            raise fail("R016", "observers watch values that the model computes", label)
        found.setdefault(node, {})[key(name, of_op)] = Watched(observer, number_of(on))
    return found
