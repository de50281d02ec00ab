"""Near-misses: models that violate one condition of a rule and no other, derived from its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...grammar.tree import tree as t
from ...grammar.tree.fold import literal
from ..measure.twins import KernelFault
from ..rules.pattern import PatternOp
from ..rules.rule import CompiledRule
from .choices.source import Replayed, Rolled, Unsuitable
from .models.edits import (
    Edit,
    call_again,
    give_back,
    hook,
    on_op,
    on_value,
    overwrite,
    read_again,
    tie,
)
from .models.grown import Grown
from .models.pattern_builder import Planted
from .models.violated import contradicts, has_further_input, is_literal, others
from .subject import Subject
from .trial import BAD, FIRED, KERNEL, NOISY, VACUOUS, Outcome, model, trial

ATTEMPTS = 80
"""Models drawn for one condition before it counts as not reached."""

ENOUGH = 5
"""Near-misses of one kind that are looked at."""


@dataclass(frozen=True, slots=True)
class NearMiss:
    """One way to violate one condition.

    conditions: what the miss may name, the text of the clause or the engine's code; empty where the
    rule may fire all the same, if the model stays equal. spoil: for the generator; edit: changes a
    model in which the rule would fire.
    """

    name: str
    conditions: frozenset[str]
    spoil: t.Node | None = None
    edit: Edit | None = None


@dataclass(slots=True)
class NearResult:
    """How often a near-miss was built, and what was wrong."""

    near: NearMiss
    silent: int = 0
    equal: int = 0
    conditions: Counter[str] = field(default_factory=Counter)
    wrong: list[Outcome] = field(default_factory=list)
    faults: list[KernelFault] = field(default_factory=list)

    @property
    def found(self) -> tuple[Any, ...]:
        """Everything but the near-miss itself, which no other process can be sent."""
        return self.silent, self.equal, self.conditions, self.wrong, self.faults

    @property
    def reached(self) -> int:
        return self.silent + self.equal + len(self.wrong)


def near_misses(rule: CompiledRule, subject: Subject) -> list[NearMiss]:
    """Every near-miss that the text of a rule asks for."""
    found: list[NearMiss] = []
    for op in rule.pattern.ops:
        if op.repeat:  # where another op stands it counts as absent, and the rule may fire
            continue
        if others(subject.vocabulary, op):
            name = f"another op than {' or '.join(sorted(op.ops or ()))}"
            found.append(NearMiss(name, _said(op.source.ops), op.source.ops))
        if has_further_input(subject.vocabulary, op):
            name = f"a further input of `{op.targets[0]}`"
            found.append(NearMiss(name, _said(op.source), op.source))
        found += [
            NearMiss(f"not {_text(k)}", _said(k), k) for k in op.source.attrs if is_literal(k)
        ]
        found += [NearMiss(f"not {_text(o)}", _said(o), o) for o in op.operands if _number(o)]
        found += _around(rule, subject, op)
    found += [NearMiss(f"not {_text(c)}", _said(c), c) for c in rule.pattern.shapes]
    found += [NearMiss(f"not {_text(c)}", _said(c), c) for c in rule.pattern.sites]
    return found + [NearMiss(_text(c), _said(c), c) for c in rule.source.all(t.Unless)]


def _text(node: t.Node) -> str:
    return node.span.flat


def _said(node: t.Node) -> frozenset[str]:
    return frozenset({_text(node)})


def _number(operand: t.Expr | t.Rest) -> bool:
    return isinstance(operand, t.Expr) and isinstance(literal(operand), (int, float))


def _has_weights(subject: Subject, op: PatternOp) -> bool:
    return any(subject.vocabulary[name].params for name in op.ops or ())


def _around(rule: CompiledRule, subject: Subject, op: PatternOp) -> Iterator[NearMiss]:
    """What may stand around a matched op and must not be lost."""
    inner = [n for n in op.targets if n not in rule.outputs and n != "_"]
    if not op.source.shared and not op.repeat:
        ends = _ends(rule)
        for name in inner:
            r8 = frozenset() if name in ends else frozenset({"R008"})
            yield NearMiss(f"`{name}` has another reader", r8, edit=on_value(name, read_again))
            yield NearMiss(f"`{name}` is returned", r8, edit=on_value(name, give_back))
    if len(rule.pattern.ops) > 1 and not op.repeat:
        yield NearMiss(
            f"what `{op.targets[0]}` reads changes in place",
            frozenset(),
            edit=on_op(op.index, overwrite),
        )
    if op.repeat or not _has_weights(subject, op):
        return
    yield NearMiss(
        f"the layer of `{op.targets[0]}` has a hook", frozenset(), edit=on_op(op.index, hook)
    )
    yield NearMiss(
        f"the layer of `{op.targets[0]}` is called twice",
        frozenset(),
        edit=on_op(op.index, call_again),
    )
    yield NearMiss(f"a weight of `{op.targets[0]}` is tied", frozenset(), edit=on_op(op.index, tie))


def _ends(rule: CompiledRule) -> set[str]:
    """What a match may end with: its results, and what ops read that may be absent behind it.
    Others may read that: then the match ends there.
    """
    ends = set(rule.outputs)
    for op in reversed(rule.pattern.ops):
        if op.repeat and ends.issuperset(op.targets):
            ends.update(op.reads)
    return ends


# -- looking at them -------------------------------------------------------------------------------


def examine_near(near: NearMiss, subject: Subject, tapes: Sequence[Sequence[int]]) -> NearResult:
    """Builds near-misses of one kind and looks at what becomes of them. `tapes` are of models in
    which the rule fires.
    """
    result = NearResult(near)
    for grown in _built(near, subject, tapes):
        violated = [_is_violated(near, planted) for planted in grown.planted]
        outcomes = trial(subject, grown, spoiled=near.spoil is not None)
        for outcome, surely in zip(outcomes, violated, strict=True):
            _judge(near, outcome, surely, result)
        if result.reached >= ENOUGH:
            break
    return result


def _is_violated(near: NearMiss, planted: Planted) -> bool:
    """Whether the condition surely does not hold. A shape clause that is left out may hold all the
    same; everything else is violated.
    """
    clause = near.spoil
    return not isinstance(clause, t.ShapePattern) or contradicts(clause, planted.values)


def _built(near: NearMiss, subject: Subject, tapes: Sequence[Sequence[int]]) -> Iterator[Grown]:
    sources: Iterable[Any] = map(Replayed, tapes) if near.edit else map(Rolled, range(ATTEMPTS))
    for source in sources:
        try:
            grown = model(source, subject, near.spoil)
        except Unsuitable:
            continue
        if near.edit is None or near.edit(grown):
            yield grown


def _judge(near: NearMiss, outcome: Outcome, surely: bool, result: NearResult) -> None:
    applied = outcome.kind in (FIRED, VACUOUS)
    if outcome.kind == KERNEL:
        result.faults += outcome.faults
    elif outcome.kind in BAD:
        result.wrong.append(outcome)
    elif applied and near.conditions:
        if surely:
            result.wrong.append(Outcome(NOISY, near.name, "fired"))
    elif applied:
        result.equal += outcome.kind == FIRED
    elif not near.conditions or outcome.condition in near.conditions:
        result.silent += 1
        result.conditions[outcome.condition] += 1
