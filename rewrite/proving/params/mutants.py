"""Mutants of rules over parameters, and whether anything notices them.

Such a rule says twice what becomes of the numbers. A mistake is what one half says and the other
does not; the same change in both is another rule and no mistake, so none of the mutants is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...measure.compare import outputs
from ...rules.binding import NoMatch
from ...rules.rule import CompiledRule, compile_rule
from ...rules.state import State
from ...targets.params import ParamReady, ParamTarget, with_numbers
from ...targets.weights import Param
from ..choices.source import Replayed
from ..mutants.mutants import Mutant, flat
from ..mutants.mutate import AGREES, MODEL, MUTATION_FUNCTIONS, Fate, Score, readied
from ..trial import Subject
from ..whole import farthest, graph_state
from .trial import meant, param_model

WANTED = 32
"""On how many models a mutant is tried at most."""

CHANGES: dict[str, str] = {
    "_doubled": "twice the numbers",
    "_negated": "the sign turned",
    "_positive": "the sign lost",
    "_flipped": "the first axis backwards",
    "_mirrored": "the last axis backwards",
    "_transposed": "two axes exchanged",
    "_half": "rounded to float16",
    "_bfloat16": "rounded to bfloat16",
}


def param_mutants(rule: t.Rule) -> tuple[Mutant, ...]:
    """Every mutant of a rule that says both halves, each another rule."""
    halves = {c: [s for x in rule.all(c) for s in _steps(x)] for c in (t.Perturb, t.Rewrite)}
    if not all(halves.values()):
        return ()
    words = {t.Perturb: "perturbed", t.Rewrite: "stored"}
    found = (m for c, steps in halves.items() for m in _mutants(rule, steps[-1], words[c]))
    return tuple(dict.fromkeys(found))


def _steps(clause: t.Perturb | t.Rewrite) -> Sequence[t.Assign]:
    return clause.moves if isinstance(clause, t.Perturb) else clause.steps  # type: ignore[return-value]


def _mutants(rule: t.Rule, step: t.Assign, half: str) -> Iterator[Mutant]:
    name = t.Name(str(step.path), span=step.path.span)
    changed: dict[str, t.Expr] = {"nothing": name}
    for function, phrase in CHANGES.items():
        called = t.Name(function, span=step.value.span)
        changed[phrase] = t.Call(called, (step.value,), (), span=step.value.span)
    for phrase, value in changed.items():
        source = _put(rule, step, t.replace(step, value=value))
        text = f"{flat(step.value)} -> {flat(value)}"
        yield Mutant(f"{half}: {phrase}", source, step.span, text)


def _put(rule: t.Rule, old: t.Assign, new: t.Assign) -> t.Rule:
    def of(clause: t.Node) -> t.Node:
        for name in ("moves", "steps"):
            if name in clause.content:
                items = tuple(new if item is old else item for item in getattr(clause, name))
                return t.replace(clause, **{name: items})
        return clause

    return t.replace(rule, clauses=tuple(map(of, rule.clauses)))


# -- models on which the rule applies --------------------------------------------------------------


@dataclass(frozen=True)
class ParamSpecimen:
    """A parameter of a model at which the rule applies, and what it would get."""

    state: State
    rule: CompiledRule
    param: Param
    own: ParamReady

    def ready(self, source: t.Rule) -> ParamReady | NoMatch:
        """What the engine says to another text of the rule. Nothing is changed."""
        return ParamTarget(self.state, compile_rule(source, self.rule.given)).prepare(self.param)

    def says_the_same(self, found: ParamReady) -> bool:
        mine, other = self.own.site, found.site
        halves = ((mine.stored, other.stored), (mine.moved, other.moved))
        return all(torch.equal(a, b) for a, b in halves)


def param_specimens(subject: Subject, tapes: Sequence[Sequence[int]]) -> list[ParamSpecimen]:
    """The first parameter of each model at which the rule applies."""
    found = (_specimen(subject, tape) for tape in tapes[:WANTED])
    return [specimen for specimen in found if specimen is not None]


def _specimen(subject: Subject, tape: Sequence[int]) -> ParamSpecimen | None:
    rule, graph = param_model(subject, Replayed(tape))
    state = graph_state(subject, graph, MUTATION_FUNCTIONS)
    target = ParamTarget(state, rule)
    for param in target.candidates():
        try:
            found = target.prepare(param)
        except LissomError:  # where the rule breaks its promise is none for here
            continue
        if isinstance(found, ParamReady):
            return ParamSpecimen(state, rule, param, found)
    return None


# -- killing ---------------------------------------------------------------------------------------


def param_score(subject: Subject, specimens: Sequence[ParamSpecimen]) -> Score:
    """Tries every mutant until one model tells it from the rule. What says the same numbers
    wherever it was tried is no mistake: rounding to float16 what bfloat16 has.
    """
    fates = (_kill(mutant, specimens) for mutant in param_mutants(subject.source))
    return Score(tuple(fate for fate in fates if fate is not None), len(specimens))


def _kill(mutant: Mutant, specimens: Sequence[ParamSpecimen]) -> Fate | None:
    closest = None
    for index, specimen in enumerate(specimens):
        fate = _judged(mutant, specimen, index)
        if fate is not None and fate.killed:
            return fate
        closest = fate or closest
    return closest


def _judged(mutant: Mutant, specimen: ParamSpecimen, index: int) -> Fate | None:
    """None where the mutant says the same."""
    found = readied(mutant, specimen.ready, index)
    if isinstance(found, Fate):
        return found
    if specimen.says_the_same(found):
        return None
    state, site = specimen.state, found.site
    models = meant(state.module, site), with_numbers(state, site, site.stored)
    apart = farthest(*(outputs(model, state.samples.inputs) for model in models))
    text = f"the model moves by {apart:.2g}"
    return Fate(mutant, MODEL if apart > AGREES else "", text, index, apart / AGREES)
