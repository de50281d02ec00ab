"""Conditions of a pattern that a model is to violate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....grammar.tree import tree as t
from ....grammar.tree.fold import literal
from ...match.shapes import same
from ...ops.spec import TensorSpec
from ...ops.vocabulary import Vocabulary
from ...rules.pattern import Pattern, PatternOp
from ...rules.rule import CompiledRule
from ..choices.source import Unsuitable
from .pattern_builder import Planted


def others(vocabulary: Vocabulary, op: PatternOp) -> list[str]:
    """Ops that a pattern op does not name but that take the same operands, weights and settings."""
    if op.ops is None:
        return []
    like = vocabulary[min(op.ops)]
    asked = {keyword.name.text for keyword in op.source.attrs}
    params = [param.name for param in like.params]
    return sorted(
        spec.name
        for spec in map(vocabulary.__getitem__, vocabulary.names())
        if spec.name not in op.ops
        and len(spec.inputs) == len(like.inputs)
        and spec.results == like.results
        and [param.name for param in spec.params] == params
        and asked <= spec.attrs.keys()
        and not spec.traits & {"random", "many"}
    )


def is_literal(keyword: t.Keyword) -> bool:
    """Whether a setting has its value in the text, instead of a name."""
    return isinstance(keyword.value, t.Constant) or literal(keyword.value) is not None


def has_further_input(vocabulary: Vocabulary, op: PatternOp) -> bool:
    """Whether an op that the pattern names takes one more operand than the pattern gives it."""
    if any(isinstance(operand, t.Rest) for operand in op.operands):
        return False
    inputs = [vocabulary[name].inputs[len(op.operands) :] for name in op.ops or ()]
    return any(rest and rest[0].optional for rest in inputs)


def forbidden(rule: CompiledRule, spoil: t.Node | None) -> list[Pattern]:
    """The pattern of the clause `unless` that is to be violated."""
    clauses = rule.source.all(t.Unless)
    found = [p for c, (p, _) in zip(clauses, rule.unless, strict=True) if c is spoil]
    produced = {name for pattern in found for name in pattern.produced}
    if produced & rule.pattern.produced.keys():
        raise Unsuitable("the clause `unless` is about an op of the match")
    return found


def without(planted: Planted, ops: Sequence[PatternOp], rule: CompiledRule) -> Planted:
    """What was planted, with these ops beside the instance and not in it."""
    own = {name for op in rule.pattern.ops for name in (*op.targets, *op.reads)}
    for op in ops:
        chain = planted.chains.pop(op.index, [])
        planted.beside += [planted.nodes.pop(op.index)] if op.index in planted.nodes else chain
        for name in {*op.targets, *op.reads} - own:
            planted.values.pop(name, None)
    return planted


def check_spoilt(drawn: Any, wanted: Any) -> None:
    """Raises `Unsuitable` where a setting is what the pattern asks for."""
    if same(drawn, wanted):
        raise Unsuitable("the draw is what the pattern asks for")


def unlike(number: Any) -> list[float]:
    """Other numbers, a zero of the other sign among them."""
    zeros = [-0.0] if number == 0 else []
    return [*(n for n in (2.5, 0, 3, -1.0) if n != number), *zeros]


# -- shape clauses ---------------------------------------------------------------------------------

_CLASSES = {"f": "float", "i": "int", "b": "bool"}


def contradicts(clause: t.ShapePattern, values: Mapping[str, Any]) -> bool:
    """Whether a value surely does not fit a clause: another class of numbers, another number of
    axes, another extent where a number is written.
    """
    value = values.get(clause.path.parts[0].text) if len(clause.path.parts) == 1 else None
    spec = getattr(value, "meta", {}).get("val")
    if not isinstance(spec, TensorSpec):
        return False
    if _CLASSES.get(clause.type.name or "", "") not in ("", _class_of(spec)):
        return True
    dims = clause.type.dims
    if dims is None or any(isinstance(dim, t.DimRest) for dim in dims):
        fixed = 0 if dims is None else len(dims) - 1
        return len(spec.shape) < fixed
    numbers = [literal(dim) if isinstance(dim, t.Expr) else None for dim in dims]
    pairs = zip(numbers, spec.shape, strict=False)
    return len(dims) != len(spec.shape) or any(n not in (None, size) for n, size in pairs)


def _class_of(spec: TensorSpec) -> str:
    if spec.dtype.is_floating_point:
        return "float"
    return "bool" if spec.dtype == torch.bool else "int"
