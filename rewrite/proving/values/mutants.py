"""Mutants of rules over values: one half runs other ops than the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from ....grammar.tree import tree as t
from ....grammar.tree.clauses import builds, moves
from ...apply.planned import Plan
from ...measure.compare import outputs
from ...rules.state import State
from ...targets.exchanged import Ops, spread
from ...targets.values import ValueReady, ValueTarget
from ..budget_check import fresh
from ..halves import Judge, put, score, specimens
from ..mutants.mutants import Mutant, flat
from ..mutants.mutate import Score
from ..subject import Subject
from ..whole import farthest
from .trial import meant

SETTINGS = {"_doubled": "twice", "_negated": "the other sign of"}
"""Functions that change a setting of an op."""


def value_mutants(rule: t.Rule) -> tuple[Mutant, ...]:
    """Every mutant of a rule that says both halves, each another rule."""
    moved = [move for move in moves(rule) if isinstance(move, t.Assign)]
    built = list(builds(rule))
    if not moved or not built:
        return ()
    halves = (_mutants(rule, moved[-1], "perturbed"), _mutants(rule, built[-1], "built"))
    return tuple(dict.fromkeys(mutant for half in halves for mutant in half))


def _mutants(rule: t.Rule, step: t.Assign | t.Build, half: str) -> Iterator[Mutant]:
    (clause,) = rule.all(t.MatchValue)
    for phrase, value in _changed(step.value, clause.name.text):
        source = put(rule, step, t.replace(step, value=value))
        yield Mutant(f"{half}: {phrase}", source, step.span, f"{flat(step.value)} -> {flat(value)}")


def _changed(expr: t.Expr, name: str) -> Iterator[tuple[str, t.Expr]]:
    yield "nothing", t.Name(name, span=expr.span)
    yield "twice the numbers", _called("mul", expr, t.Number("2", span=expr.span))
    yield "the sign turned", _called("neg", expr)
    if isinstance(expr, t.Call):
        for at in range(len(expr.keywords)):
            yield from _reset(expr, at)


def _reset(expr: t.Call, at: int) -> Iterator[tuple[str, t.Expr]]:
    """One setting is another, or left out."""
    keyword, before, behind = expr.keywords[at], expr.keywords[:at], expr.keywords[at + 1 :]
    yield f"without `{keyword.name}`", t.replace(expr, keywords=(*before, *behind))
    for function, phrase in SETTINGS.items():
        other = t.replace(keyword, value=_called(function, keyword.value))
        yield f"{phrase} `{keyword.name}`", t.replace(expr, keywords=(*before, other, *behind))


def _called(function: str, *args: t.Expr) -> t.Call:
    span = args[0].span
    return t.Call(t.Name(function, span=span), args, (), span=span)


def _same(own: ValueReady, found: ValueReady) -> bool:
    """Whether both halves say the same on numbers of all sizes, as a doubled 0 does."""
    mine, other = own.site, found.site
    halves = ((mine.moved, other.moved), (mine.built, other.built))
    return all(_equal(mine.node, a, b) for a, b in halves if a is not None and b is not None)


def _equal(node: fx.Node, one: Plan, other: Plan) -> bool:
    sides = [[Ops(node, plan)(*e.args) for e in spread(node)] for plan in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*sides, strict=True))


def _apart(state: State, found: ValueReady) -> float:
    """On numbers that the rule has not seen: on others, the new ops may be idle."""
    models, given = (meant(state.module, found.site), found.model), fresh(state.samples.inputs)
    return farthest(*(outputs(model, given) for model in models))


VALUES = Judge(ValueTarget, value_mutants, _same, _apart)


def value_score(subject: Subject, tapes: Sequence[Sequence[int]]) -> Score:
    """Tries every mutant until one model tells it from the rule."""
    return score(subject, specimens(subject, tapes, VALUES), VALUES)
