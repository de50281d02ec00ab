"""Mutants of rules over parameters, and whether anything notices them.

Such a rule says twice what becomes of the numbers. A mistake is what one half says and the other
does not; the same change in both is another rule and no mistake, so none of the mutants is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ....grammar.tree import tree as t
from ...measure.compare import outputs
from ...rules.state import State
from ...targets.params import ParamReady, ParamTarget, with_numbers
from ..halves import Judge, SiteSpecimen, put, score, specimens
from ..mutants.mutants import Mutant, flat
from ..mutants.mutate import Score
from ..subject import Subject
from ..whole import farthest
from .trial import meant

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
        source = put(rule, step, t.replace(step, value=value))
        text = f"{flat(step.value)} -> {flat(value)}"
        yield Mutant(f"{half}: {phrase}", source, step.span, text)


# -- killing ---------------------------------------------------------------------------------------


def _same(own: ParamReady, found: ParamReady) -> bool:
    """Whether both say the same numbers: rounding to float16 what bfloat16 has is no mistake."""
    mine, other = own.site, found.site
    halves = ((mine.stored, other.stored), (mine.moved, other.moved))
    return all(torch.equal(a, b) for a, b in halves)


def _apart(state: State, found: ParamReady) -> float:
    site = found.site
    models = meant(state.module, site), with_numbers(state, site, site.stored)
    return farthest(*(outputs(model, state.samples.inputs) for model in models))


PARAMS = Judge(ParamTarget, param_mutants, _same, _apart)


def param_specimens(subject: Subject, tapes: Sequence[Sequence[int]]) -> list[SiteSpecimen]:
    """The first parameter of each model at which the rule applies."""
    return specimens(subject, tapes, PARAMS)


def param_score(subject: Subject, found: Sequence[SiteSpecimen]) -> Score:
    """Tries every mutant until one model tells it from the rule."""
    return score(subject, found, PARAMS)
