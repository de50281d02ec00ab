"""Mutants of rules that say twice what becomes of a place, in `perturb` and in `rewrite`, and
whether anything notices them. A mistake is what one half says and the other does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...grammar.diagnostics import LissomError
from ...grammar.tree import tree as t
from ..rules.binding import NoMatch
from ..rules.rule import CompiledRule, compile_rule
from ..rules.state import State
from ..targets.target import Target
from .choices.source import Replayed
from .mutants.mutants import Mutant
from .mutants.mutate import AGREES, MODEL, Fate, Score, readied
from .mutants.spoiling import MUTATION_FUNCTIONS
from .subject import Subject
from .whole import drawn_model, graph_state

WANTED = 32
"""On how many models a mutant is tried at most."""


@dataclass(frozen=True, slots=True)
class Judge:
    """What the rules of one kind are told apart by: their target, the mutants of one of them,
    whether a mutant says the same as the rule, and how far what it does is from what it says.
    """

    target: type[Target[Any, Any]]
    mutants: Callable[[t.Rule], tuple[Mutant, ...]]
    same: Callable[[Any, Any], bool]
    apart: Callable[[State, Any], float]


@dataclass(frozen=True)
class SiteSpecimen:
    """A place of a model at which the rule applies, and what would become of it."""

    state: State
    rule: CompiledRule
    place: Any
    own: Any


def specimens(subject: Subject, tapes: Sequence[Sequence[int]], judge: Judge) -> list[SiteSpecimen]:
    """The first place of each model at which the rule applies."""
    found = (_specimen(subject, tape, judge) for tape in tapes[:WANTED])
    return [specimen for specimen in found if specimen is not None]


def _specimen(subject: Subject, tape: Sequence[int], judge: Judge) -> SiteSpecimen | None:
    rule, graph = drawn_model(subject, Replayed(tape))
    state = graph_state(subject, graph, MUTATION_FUNCTIONS)
    target = judge.target(state, rule)
    for place in target.candidates():
        try:
            found = target.prepare(place)
        except LissomError:  # where the rule breaks its promise is none for here
            continue
        if not isinstance(found, NoMatch):
            return SiteSpecimen(state, rule, place, found)
    return None


def score(subject: Subject, found: Sequence[SiteSpecimen], judge: Judge) -> Score:
    """Tries every mutant until one model tells it from the rule. What says the same wherever it was
    tried is no mistake.
    """
    fates = (_kill(mutant, found, judge) for mutant in judge.mutants(subject.source))
    return Score(tuple(fate for fate in fates if fate is not None), len(found))


def _kill(mutant: Mutant, found: Sequence[SiteSpecimen], judge: Judge) -> Fate | None:
    closest = None
    for index, specimen in enumerate(found):
        fate = _judged(mutant, specimen, index, judge)
        if fate is not None and fate.killed:
            return fate
        closest = fate or closest
    return closest


def _judged(mutant: Mutant, specimen: SiteSpecimen, index: int, judge: Judge) -> Fate | None:
    """None where the mutant says the same."""
    state, place, given = specimen.state, specimen.place, specimen.rule.given

    def ready(source: t.Rule) -> Any:
        """What the engine says to another text of the rule. Nothing is changed."""
        return judge.target(state, compile_rule(source, given)).prepare(place)

    found = readied(mutant, ready, index)
    if isinstance(found, Fate):
        return found
    if judge.same(specimen.own, found):
        return None
    apart = judge.apart(state, found)
    text = f"the model moves by {apart:.2g}"
    return Fate(mutant, MODEL if apart > AGREES else "", text, index, apart / AGREES)


def put(rule: t.Rule, old: t.Node, new: t.Node) -> t.Rule:
    """The rule with another step in the place of one of `perturb` or `rewrite`."""

    def of(clause: t.Node) -> t.Node:
        for name in ("moves", "steps"):
            if name in clause.content:
                items = tuple(new if item is old else item for item in getattr(clause, name))
                return t.replace(clause, **{name: items})
        return clause

    return t.replace(rule, clauses=tuple(map(of, rule.clauses)))
