"""Near-misses of rules that range over something of the whole model: places at which one guard
fails and no other, and what becomes of places in models with one more op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ...grammar.tree import tree as t
from ..rules.rule import CompiledRule, compile_rule
from ..rules.state import State
from ..targets.choose import target_of
from .choices.source import ChoiceSource, Rolled, Unsuitable
from .dims.models import Graph
from .near_miss import ATTEMPTS, ENOUGH, NearMiss, NearResult
from .subject import Subject
from .trial import BAD, FIRED, NOISY, VACUOUS, Outcome
from .whole import graph_state, said_at

Drawn = Callable[[Subject, ChoiceSource], tuple[CompiledRule, Graph]]
"""The rule with drawn arguments, and a model for it. Raises `Unsuitable`."""


def alone(subject: Subject, start: int, drawn: Drawn) -> list[NearResult]:
    """For each guard: places at which it fails, while the rule without it has none that does.
    Models in which the rule does not fire have them too.
    """
    guards = [g for w in subject.source.all(t.Where) for g in w.guards if isinstance(g, t.Guard)]
    texts = [guard.span.flat for guard in guards]
    found = {text: NearResult(NearMiss(text, frozenset({text}))) for text in texts}
    without = {
        text: _without(subject.source, guard) for text, guard in zip(texts, guards, strict=True)
    }
    for number in range(ATTEMPTS):
        if all(result.reached >= ENOUGH for result in found.values()):
            break
        try:
            rule, graph = drawn(subject, Rolled(f"{start}/near/{number}"))
        except Unsuitable:
            continue
        for said in _alone_in(graph_state(subject, graph), rule, without):
            found[said].silent += 1
            found[said].conditions[said] += 1
    return list(found.values())


def _without(source: t.Rule, guard: t.Guard) -> t.Rule:
    """The rule without one guard."""

    def kept(item: Any) -> Any:
        if not isinstance(item, t.Where):
            return item
        return t.replace(item, guards=tuple(g for g in item.guards if g is not guard))

    return t.replace(source, clauses=tuple(map(kept, source.clauses)))


def _alone_in(state: State, rule: CompiledRule, without: dict[str, t.Rule]) -> Iterator[str]:
    target = target_of(state, rule)
    bare = {
        said: target_of(state, compile_rule(source, rule.given)) for said, source in without.items()
    }
    for place in target.candidates():
        said = said_at(target, place)
        if said in without and said_at(bare[said], place) not in without:
            yield said


def judge(result: NearResult, outcome: Outcome, fires: bool) -> None:
    """Nothing but the reader is new, so whatever keeps the rule silent comes from it."""
    applied = outcome.kind in (FIRED, VACUOUS)
    if outcome.kind in BAD:
        result.wrong.append(outcome)
    elif applied and not fires:
        result.wrong.append(Outcome(NOISY, result.near.name, "fired"))
    elif applied:
        result.equal += 1
    else:
        result.silent += 1
        result.conditions[outcome.condition] += 1
