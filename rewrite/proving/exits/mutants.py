"""Mutants of rules with an exit: other samples leave, or with something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ....grammar.tree import tree as t
from ....grammar.tree.clauses import builds
from ...exits.rows import behind_exits
from ...exits.segments import early_exit
from ...rules.rule import compile_rule
from ...rules.state import State
from ...targets.values import ValueReady, ValueTarget
from ..budget_check import fresh
from ..halves import Judge, SiteSpecimen, put, specimens
from ..mutants.mutants import Mutant, flat
from ..mutants.mutate import MODEL, Fate, Score, readied
from ..subject import Subject
from .trial import AGREES, Said, new_exit

OPPOSITE = {">": "<", ">=": "<=", "<": ">", "<=": ">="}


def exit_mutants(rule: t.Rule) -> tuple[Mutant, ...]:
    """Every mutant of a rule with an exit, each another rule."""
    (step,) = (s for r in rule.all(t.Rewrite) for s in r.steps if isinstance(s, t.Exit))
    return tuple(dict.fromkeys([*_of_condition(rule, step), *_of_logits(rule, step)]))


def _of_condition(rule: t.Rule, step: t.Exit) -> Iterator[Mutant]:
    """The others leave; the score is asked of something else."""
    asked = step.condition
    assert isinstance(asked, t.Binary)
    changed = [("the others leave", t.replace(asked, op=OPPOSITE[asked.op]))]
    for phrase, operand in _changed(asked.left):
        changed.append((f"the score of {phrase}", t.replace(asked, left=operand)))
    for phrase, condition in changed:
        source = put(rule, step, t.replace(step, condition=condition))
        yield Mutant(phrase, source, step.span, f"{flat(asked)} -> {flat(condition)}")


def _of_logits(rule: t.Rule, step: t.Exit) -> Iterator[Mutant]:
    """Samples leave with something else than what the rule builds."""
    (build,) = (b for b in builds(rule) if b.targets[0].text == step.name.text)
    for op, phrase in (("neg", "the sign turned"), ("relu", "what is above 0")):
        value = _called(op, build.value)
        source = put(rule, build, t.replace(build, value=value, handle=None))
        yield Mutant(f"leaves with {phrase}", source, build.span, f"{op}(...)")


def _changed(expr: t.Expr) -> Iterator[tuple[str, t.Expr]]:
    """`confidence(e)` becomes that of other numbers."""
    if isinstance(expr, t.Call) and expr.args:
        first, *others = expr.args
        three = t.Number("3", span=expr.span)
        yield (
            "three times the logits",
            t.replace(expr, args=(_called("mul", first, three), *others)),
        )
        yield "the logits turned", t.replace(expr, args=(_called("neg", first), *others))


def _called(function: str, *args: t.Expr) -> t.Call:
    span = args[0].span
    return t.Call(t.Name(function, span=span), args, (), span=span)


EXITS = Judge(ValueTarget, exit_mutants, lambda own, found: False, lambda state, found: 0.0)


def exit_score(subject: Subject, tapes: Sequence[Sequence[int]]) -> Score:
    """Tries every mutant until one model tells it from the words of the rule."""
    found = specimens(subject, tapes, EXITS)
    fates = (_kill(mutant, found) for mutant in exit_mutants(subject.source))
    return Score(tuple(fate for fate in fates if fate is not None), len(found))


def _kill(mutant: Mutant, found: Sequence[SiteSpecimen]) -> Fate | None:
    closest = None
    for index, specimen in enumerate(found):
        closest = _judged(mutant, specimen, index)
        if closest.killed:
            return closest
    return closest


def _judged(mutant: Mutant, specimen: SiteSpecimen, index: int) -> Fate:
    state, given = specimen.state, specimen.rule.given

    def ready(source: t.Rule) -> ValueReady:
        return ValueTarget(state, compile_rule(source, given)).prepare(specimen.place)  # type: ignore[return-value]

    found = readied(mutant, ready, index)
    if isinstance(found, Fate):
        return found
    apart = max(_apart(state, specimen.own, found))
    text = f"samples get what is {apart:.2g} apart"
    return Fate(mutant, MODEL if apart > AGREES else "", text, index, apart / AGREES)


def _apart(state: State, own: ValueReady, found: ValueReady) -> Iterator[float]:
    """How far the mutant's network is from what the rule itself says."""
    network = early_exit(found.model, behind_exits(found.model, state.samples.examples))
    number = new_exit(state.module, found.model)
    tests = list(network.tests)
    for inputs in (state.samples.inputs, fresh(state.samples.inputs)):
        said = Said.of(state.module, own.site, inputs)
        yield said.distance(network, number, tests[number].test)
