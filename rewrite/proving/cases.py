"""`test` blocks: what an author says that a rule does, tried on generated models.

`fires fold_bn on batch_norm(conv2d(x))` names a family of models: those ops on any shapes, with any
weights and any settings that the expression leaves open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.tree import tree as t
from ..apply.queries import QUESTIONS
from ..journal import Refused
from ..ops.vocabulary import Vocabulary
from ..pipeline.strategy import Runner
from ..rules.rule import CompiledRule, compile_rule
from ..rules.scope import Scope
from .choices.source import Rolled, Unsuitable
from .models.generate import generate
from .subject import Functions, Subject
from .trial import state_of

MODELS = 20
"""Models of one family that are tried."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One line of a test: whether it held, and what was seen."""

    test: str
    case: t.Fires | t.Silent | t.Check
    holds: bool
    seen: str


Find = Callable[[t.Word], Subject]


def run_test(test: t.Test, find: Find, functions: Functions) -> list[CaseResult]:
    """Every line of a `test` block. `find` gives the rule that a line names, `functions` are what
    conditions may call.
    """
    return [_run(test.name.text, case, find, functions) for case in test.cases]


def _run(
    name: str, case: t.Fires | t.Silent | t.Check, find: Find, functions: Functions
) -> CaseResult:
    try:
        if isinstance(case, t.Check):
            return CaseResult(name, case, *_checked(case, functions))
        return CaseResult(name, case, *_tried(case, find(case.rule)))
    except LissomError as error:
        return CaseResult(name, case, False, str(error))
    except Exception as error:  # one line says nothing about the others
        said = f"the tester failed: {type(error).__name__}: {error}"
        return CaseResult(name, case, False, said)


def _checked(case: t.Check, functions: Functions) -> tuple[bool, str]:
    """A condition on numbers, such as `check rank_for_share(50%, 4, 64) == 8`."""
    scope = Scope({}, functions, QUESTIONS, None)
    return bool(scope.number(case.condition)), case.condition.span.text


def _tried(case: t.Fires | t.Silent, subject: Subject) -> tuple[bool, str]:
    rule = compile_rule(subject.source, {})
    family = replace(compile_rule(_family(case.model, subject.vocabulary), {}), args=rule.args)
    fired, reasons, tried = 0, Counter[tuple[str, str]](), 0
    for seed in range(4 * MODELS):
        found = _one(seed, subject, rule, family)
        if found is None:
            continue
        tried += 1
        fired += found[0]
        reasons.update(found[1])
        if tried == MODELS:
            break
    return _judged(case, fired, tried, reasons)


def _one(
    seed: int, subject: Subject, rule: CompiledRule, family: CompiledRule
) -> tuple[bool, set[tuple[str, str]]] | None:
    """Whether the rule fired on one model, else why not; None where the draws did not fit."""
    try:
        grown = generate(Rolled(seed), family, subject.vocabulary)
    except Unsuitable:
        return None
    state = state_of(subject, grown)
    applied = Runner(state, "test").once([rule])
    return applied > 0, {(event.code, event.reason) for event in state.journal.of(Refused)}


def _judged(
    case: t.Fires | t.Silent, fired: int, tried: int, reasons: Counter[tuple[str, str]]
) -> tuple[bool, str]:
    often = [reason for (_, reason), _ in reasons.most_common(3)]
    said = "; ".join(often) or "nothing looked like a site"
    share = f"fired on {fired} of {tried} models"
    if isinstance(case, t.Fires):
        return fired > 0, share if fired else f"{share}: {said}"
    if fired or not tried or case.because is None:
        return not fired and tried > 0, share
    named = any(
        case.because in (code, reason) or case.because in reason for code, reason in reasons
    )
    return named, said


# -- the family of an expression -------------------------------------------------------------------


def _family(model: t.Expr, vocabulary: Vocabulary) -> t.Rule:
    """A rule whose left side is the expression; its right side is never used."""
    patterns: list[t.OpPattern] = []
    root = _flatten(model, vocabulary, patterns)
    span = model.span
    result = t.Build((t.Word(root.text, span=span),), root, None, None, span=span)
    clauses = (t.Match(None, tuple(patterns), span=span), t.Rewrite((result,), span=span))
    return t.Rule("exact", t.Word("family", span=span), (), clauses, span=span)


def _flatten(expr: t.Expr, vocabulary: Vocabulary, patterns: list[t.OpPattern]) -> t.Name:
    """Nested calls as lines of a pattern, innermost first."""
    if not isinstance(expr, t.Call) or not isinstance(expr.function, t.Name):
        raise fail("T001", "a model is written as calls of ops", Label(expr.span))
    op = expr.function.text
    if op not in vocabulary:
        raise fail("N001", f"no op is called `{op}`", Label(expr.function.span))
    operands = tuple(
        _flatten(arg, vocabulary, patterns) if isinstance(arg, t.Call) else arg for arg in expr.args
    )
    target = t.Word(f"_{len(patterns)}", span=expr.span)
    names = t.OpSet((t.Word(op, span=expr.function.span),), span=expr.function.span)
    line = t.OpPattern((target,), names, operands, expr.keywords, None, span=expr.span)
    patterns.append(line)
    return t.Name(target.text, span=expr.span)
