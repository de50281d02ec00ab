"""What a rule ranges over: ops, dimensions, images, parameters, values.

Whoever runs, explains or measures rules speaks to a `Target` and never asks what kind of rule it
has. A target is made for one rule and one step of a pipeline. A new kind of thing that rules may
range over is a class of this kind, named in `choose.py`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from torch import fx

from ...grammar.tree import tree as t
from ..graph.snapshot import snapshot
from ..journal import Costs, Refused, Verdict
from ..measure.latency import Saving
from ..rules.binding import GUARDS, PLAN, NoMatch
from ..rules.rule import CompiledRule
from ..rules.state import State

Rank = tuple[int, int]
"""How far a candidate came: a stage of `rules.binding`, and a step of it."""
Condition = tuple[Rank, str, str]
"""(rank, kind, text) of something that can fail."""


WHOLE = 1 << 62
"""More bytes than there is room for."""


class PreparedSite(Protocol):
    """Where a prepared rewrite would be made."""

    rule: CompiledRule

    @property
    def name(self) -> str: ...


class Prepared(Protocol):
    """A rewrite that was verified and waits to be committed."""

    @property
    def site(self) -> PreparedSite: ...

    before: Costs
    after: Costs
    when: int
    """How many changes of the graph there had been (`state.changes`)."""

    @property
    def held(self) -> bool:
        """Whether it was not let go."""
        ...

    @property
    def verdicts(self) -> tuple[Verdict, ...]: ...

    @property
    def saving(self) -> int:
        """Parameters saved: what `order by saving` ranks by."""
        ...

    timed: Saving | None
    """What it saves of time, where that was measured: `order by latency`."""

    @property
    def sensitivity(self) -> float:
        """How far the site is moved: what `order by sensitivity` ranks by, the least first."""
        ...


P = TypeVar("P")
R = TypeVar("R", bound=Prepared)


@dataclass(frozen=True, slots=True)
class Attempt(Generic[P, R]):
    """What became of one candidate, and how long that took. found: None where it is gone."""

    place: P
    found: R | NoMatch | None
    seconds: float


class Target(ABC, Generic[P, R]):
    """What `rule` ranges over in the working model of `state`. P is one candidate, R a candidate at
    which the rule was verified.
    """

    local: ClassVar[bool] = False
    """A change is felt only near it, so that a fixpoint need not try all places again."""

    def __init__(self, state: State, rule: CompiledRule) -> None:
        self.state, self.rule = state, rule

    # -- applying ----------------------------------------------------------------------------------

    @abstractmethod
    def candidates(self) -> list[P]:
        """What the rule could change in the present graph, in its order."""

    @abstractmethod
    def alive(self, places: Sequence[P]) -> list[P]:
        """What has become of candidates since the graph was changed, or taken back."""

    def prepare(self, place: P) -> R | NoMatch:
        """The rule at one candidate, verified but not committed; or the reason why not.

        Raises what is an error of the rule itself: V101 where its sides differ.
        """
        found = self.weigh(place)
        return found if isinstance(found, NoMatch) else self.verify(found)

    @abstractmethod
    def weigh(self, place: P) -> R | NoMatch:
        """As much of `prepare` as says what the rule would cost and save there."""

    def verify(self, ready: R) -> R | NoMatch:
        """The rest of it, in the graph that the candidate was weighed in."""
        return ready

    def prepare_next(
        self, places: Sequence[P], most: int | None, tell: Callable[[int], None]
    ) -> list[Attempt[P, R]]:
        """What becomes of the first candidates, each on what those before it leave: of at least
        one, of as many as can be verified together. All that is returned is to be committed, in
        this order. At most `most` are changed; `tell` hears how many were tried.

        One by one, unless a target knows how to verify several changes at once.
        """
        begun = time.perf_counter()
        now = self.alive(places[:1])
        if now:
            tell(1)
        found = self.prepare(now[0]) if now else None
        return [Attempt(places[0], found, time.perf_counter() - begun)]

    @abstractmethod
    def commit(self, stage: str, ready: R, seconds: float) -> None:
        """Changes the working model, and writes it down as part of `stage`."""

    def way_back(self) -> Callable[[], None]:
        """What takes the next commit back."""
        state, entry = self.state, snapshot(self.state.module)

        def back() -> None:
            state.reset(entry)
            state.samples.forget()

        return back

    def together(self, steps: Callable[[], object]) -> bool:
        """Runs `steps`, whose commits are made in a copy meanwhile and verified together when they
        end. Whether that was done and they hold; if not, the working model is as it was before,
        and what was written down in between is to be forgotten.
        """
        return False

    def look_ahead(self, places: Sequence[P]) -> None:
        """Told which candidates come next: what they read may be recorded in one run."""

    # -- waiting -----------------------------------------------------------------------------------

    def measure(self, ready: R) -> R | NoMatch:
        """Finds out its `sensitivity`, where that is not known from weighing it."""
        return ready

    @abstractmethod
    def time(self, ready: R) -> R | NoMatch:
        """Finds out its `timed`, where that is not known: of the site alone where it can run alone,
        else of the whole model.
        """

    def slower(self, waiting: Sequence[R]) -> list[R]:
        """Those of all rewrites that wait which do not save more time than measurements vary."""
        held = ((ready, ready.timed) for ready in waiting if ready.held)
        return [ready for ready, timed in held if timed is not None and timed.least <= 0]

    def stands(self, ready: R) -> bool:
        """Whether a weighed rewrite may be verified and committed as it is: nothing that it read
        has changed since, and it was not let go.
        """
        return ready.held and ready.when == self.state.changes.now

    def weigh_again(self, place: P, ready: R) -> R | NoMatch:
        """A candidate whose weighed rewrite stands no longer, in the present graph."""
        return self.weigh(place)

    def may_outgrow(self, ready: R) -> bool:
        """Whether what has changed since may let it save more than it did. A cut or a rewrite takes
        away from what others nearby can save; what their guards and bindings asked of the whole
        model or of what it computes may turn out either way.
        """
        return False

    def hold(self, ready: R) -> int:
        """Told that a weighed rewrite waits: what it needs no more is dropped. Returns the bytes
        that it holds; by default those of whole models, of which one is held at a time.
        """
        return WHOLE

    @abstractmethod
    def forget(self, ready: R) -> None:
        """Told that it is not committed now: it lets go of what it holds, and stands no longer."""

    def fresh(self, tried: Sequence[P]) -> list[str]:
        """Sites that are there only since the rule was applied elsewhere."""
        return []

    # -- measuring ---------------------------------------------------------------------------------

    @classmethod
    def apart(cls, state: State) -> AbstractContextManager[None]:
        """While it lasts, `with_one` does not touch the working model."""
        return nullcontext()

    @abstractmethod
    def with_one(self, ready: R) -> tuple[fx.GraphModule, Costs]:
        """The model with this one rewrite, and what the whole model costs then."""

    # -- telling -----------------------------------------------------------------------------------

    @abstractmethod
    def name(self, place: P) -> str:
        """How people find the candidate in the model."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What a candidate is: "conv2d", "any dimension"."""

    @abstractmethod
    def at(self, places: Sequence[P], path: str) -> list[P]:
        """Those candidates at a module path, name or glob. Raises U008 if the model has none."""

    @abstractmethod
    def conditions(self) -> Iterator[Condition]:
        """All that can fail, in ascending rank."""

    def rank(self, miss: NoMatch) -> Rank:
        """How far a candidate came, in the ranks of `conditions`."""
        return miss.rank

    def source(self, place: P, miss: NoMatch) -> str:
        """The line of the model that keeps the rule from applying, "" if none is known."""
        return "" if miss.node is None else str(miss.node.meta.get("source") or "")

    def refused(self, stage: str, place: P, miss: NoMatch) -> Refused:
        """Why a candidate was left, for the journal."""
        told = str(miss.span) if miss.span is not None else ""
        return Refused(stage, self.rule.label, self.name(place), miss.code, miss.text(), told)


def guards(rule: CompiledRule) -> Iterator[Condition]:
    """The guards of a rule, one condition each."""
    found = [guard for where in rule.source.all(t.Where) for guard in where.guards]
    for number, guard in enumerate(found, 1):
        if isinstance(guard, t.Guard):
            yield (GUARDS, number), "guard", line(guard.condition)


def line(node: t.Node) -> str:
    """The source of a part of a rule on one line."""
    return node.span.flat


# -- of what changes the whole model ---------------------------------------------------------------

_STAYS, _CHOICE, _CLAIM = range(3)


def change_conditions(
    rule: CompiledRule, stays: tuple[str, str], choice: tuple[str, str]
) -> Iterator[Condition]:
    """Guards; then that the model lets the change happen, that there is something to change, and
    what the rule promises. Each as (kind, text).
    """
    yield from guards(rule)
    yield (PLAN, _STAYS), *stays
    yield (PLAN, _CHOICE), *choice
    yield (PLAN, _CLAIM), "plan", "; ".join(map(line, rule.claims)) or "nothing is promised"


def change_rank(miss: NoMatch) -> Rank:
    """How far a candidate came. Whether the model lets it happen is asked when all guards hold."""
    if miss.stage == GUARDS:
        return miss.rank
    if miss.stage == PLAN:
        return PLAN, _CLAIM if miss.code == "B001" else _CHOICE
    return PLAN, _STAYS
