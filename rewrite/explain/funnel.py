"""Why a rule does or does not match: candidates counted at each condition, and the nearest misses.

Nothing is applied. Each candidate is asked as an application would ask it, up to the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ...grammar.diagnostics import Diagnostic, Label, Span
from ..graph.places import nodes_at
from ..match.opaque_report import Hidden, Sought, sought, unknown
from ..rules.binding import NoMatch
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..targets.choose import target_of
from ..targets.target import Condition, Prepared, Rank, Target

P = TypeVar("P")
R = TypeVar("R", bound=Prepared)

NEAREST = 3
"""How many of the nearest misses are told."""


@dataclass(frozen=True, slots=True)
class Level:
    """One condition of a rule: what it says, how many candidates came to it, how many passed."""

    kind: str
    text: str
    came: int
    passed: int


@dataclass(frozen=True, slots=True)
class NearestMiss:
    """A candidate that was left: its place in the model, the reason, and the part of the rule."""

    site: str
    source: str
    code: str
    reason: str
    span: Span | None
    rank: Rank

    def diagnostic(self) -> Diagnostic:
        where = f"{self.site} ({self.source})" if self.source else self.site
        labels = (Label(self.span, "here it ends"),) if self.span is not None else ()
        message = f"{self.site}: {self.reason}"
        return Diagnostic(
            self.code or "W703", message, (*labels, Label(None, where=where)), severity="note"
        )


@dataclass(frozen=True, slots=True)
class Funnel:
    """The candidates of a rule, condition by condition, in the order in which they are asked.

    `sites` are the places where the rule applies; `nearest` the misses that came furthest. Where
    there is no candidate, `sought` says what the rule looks for, and `unknown` lists the nodes that
    may be anything.
    """

    rule: str
    place: str
    anchor: str
    candidates: int
    levels: tuple[Level, ...]
    sites: tuple[str, ...]
    nearest: tuple[NearestMiss, ...]
    sought: tuple[Sought, ...] = ()
    unknown: tuple[Hidden, ...] = ()


def funnel(
    state: State, rule: CompiledRule, at: str | None = None, nearest: int = NEAREST
) -> Funnel:
    """Asks every candidate of `rule`, or those at the module path or glob `at`, and counts.

    For a rule over dimensions the candidates are the classes of the model, and `at` is the path of
    a parameter; for one over the resolution they are its image inputs, and `at` is a name. Raises
    U008 if the model has nothing at `at`; whatever the rule itself raises is passed on.
    """
    target = target_of(state, rule)
    places = target.candidates()
    answers = [_answer(target, one) for one in (places if at is None else target.at(places, at))]
    near = [answer for answer in answers if isinstance(answer, NearestMiss)]
    near.sort(key=lambda miss: miss.rank, reverse=True)
    return Funnel(
        rule.label,
        str(rule.source.name.span),
        target.kind,
        len(answers),
        tuple(_levels(list(target.conditions()), len(answers), [miss.rank for miss in near])),
        tuple(answer for answer in answers if isinstance(answer, str)),
        tuple(_different(near))[:nearest],
        () if answers else sought(state, rule),
        () if answers else unknown(state),
    )


def _answer(target: Target[P, R], place: P) -> str | NearestMiss:
    """The name of the site, or why there is none."""
    found = target.prepare(place)
    if not isinstance(found, NoMatch):
        return found.site.name
    source, rank = target.source(place, found), target.rank(found)
    return NearestMiss(target.name(place), source, found.code, found.text(), found.span, rank)


def opaque_at(state: State, at: str) -> list[tuple[str, str]]:
    """What at `at` no rule can see: names of nodes that are no known op, and why."""
    nodes = [n for n in nodes_at(state.module.graph.nodes, at) if n.op != "get_attr"]
    return sorted((n.name, reason) for n in nodes if (reason := state.view.why_opaque(n)))


# -- counting --------------------------------------------------------------------------------------


def _levels(conditions: list[Condition], count: int, misses: list[Rank]) -> Iterator[Level]:
    """Every condition with its counts. A miss belongs to the last condition not after its rank."""
    ranks = [rank for rank, _, _ in conditions]
    lost = [0] * len(conditions)
    for miss in misses:
        lost[max((i for i, rank in enumerate(ranks) if rank <= miss), default=0)] += 1
    for (_, kind, text), gone in zip(conditions, lost, strict=True):
        yield Level(kind, text, count, count - gone)
        count -= gone


def _different(near: Iterable[NearestMiss]) -> Iterator[NearestMiss]:
    """The first of those that were left for the same reason."""
    seen = set()
    for one in near:
        if (one.reason, one.rank) not in seen:
            seen.add((one.reason, one.rank))
            yield one
