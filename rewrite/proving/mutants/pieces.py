"""Pieces of a rule's tree: making them, and telling them in an author's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ....grammar.tree import tree as t
from ...ops.opspec import OpSpec
from .roles import Roles

Above = tuple[t.Node, ...]
"""The nodes around a piece, the nearest first."""

Change = tuple[str, t.Node]
"""A phrase such as "bias dropped", and what stands in the place of the piece."""

Alter = Callable[[Any, Above, Roles], Iterator[Change]]
"""From a piece and what is around it to every way in which it may be wrong."""


def name(at: t.Node, text: str) -> t.Name:
    return t.Name(text, span=at.span)


def number(at: t.Node, value: int | float) -> t.Number:
    return t.Number(str(value), span=at.span)


def string(at: t.Node, text: str) -> t.String:
    return t.String(text, span=at.span)


def binary(op: str, left: t.Expr, right: t.Expr) -> t.Binary:
    return t.Binary(op, left, right, span=left.span)


def call(function: str, *args: t.Expr, **keywords: t.Expr) -> t.Call:
    at = args[0]
    named = tuple(t.Keyword(word(at, k), v, span=at.span) for k, v in keywords.items())
    return t.Call(name(at, function), args, named, span=at.span)


def attribute(at: t.Node, owner: str, text: str) -> t.Attribute:
    return t.Attribute(name(at, owner), text, span=at.span)


def part(value: t.Expr, index: int) -> t.Attribute:
    return t.Attribute(value, str(index), span=value.span)


def none(at: t.Node) -> t.Constant:
    return t.Constant(None, span=at.span)


def word(at: t.Node, text: str) -> t.Word:
    return t.Word(text, span=at.span)


def label(expr: t.Node) -> str:
    """A piece in an author's words."""
    if isinstance(expr, t.Attribute):
        return PHRASES.get(expr.name, expr.name)
    if isinstance(expr, t.Binary) and expr.op == "or":
        return label(expr.left)
    if isinstance(expr, t.Binary):
        return _RESULTS.get(expr.op, "expression")
    if isinstance(expr, t.Subscript):
        return label(expr.value)
    if isinstance(expr, t.Call):
        return f"`{expr.span.text.split('(')[0]}(...)`"
    return f"`{expr.span.flat}`"


PHRASES = {"eps": "epsilon", "running_mean": "mean", "running_var": "variance"}
_RESULTS = {"+": "sum", "-": "difference", "*": "product", "/": "quotient", "@": "product"}

WEIGHTS = {
    "doubled": "_doubled", "negated": "_negated", "made positive": "_positive",
    "reversed": "_flipped", "rounded to half precision": "_half",
    "rounded to 8 bits": "_eighth",
}  # fmt: skip
"""What may happen to a new weight as a whole, and the function that does it."""

HALF, EIGHTH = "rounded to half precision", "rounded to 8 bits"


NEVER_NEGATIVE = frozenset({"abs", "sqrt", "exp", "variance", "balance", "migration"})
"""Functions whose results nothing changes that takes magnitudes."""

POWERS = frozenset({"balance", "migration"})
"""Functions that give powers of two, which half precision has."""


def weight_mistakes(
    value: t.Expr, coarse: bool = True, signed: bool = True, halved: bool = False
) -> dict[str, str]:
    """Those of `WEIGHTS` that make another weight of this one. coarse: it is no whole number, which
    half precision has. signed: it may be negative. halved: it has a half type already.
    """
    called = value.function if isinstance(value, t.Call) else None
    named = called.text if isinstance(called, t.Name) else ""
    same = {"made positive"} if named in NEVER_NEGATIVE or not signed else set()
    coarse = coarse and named not in POWERS
    same |= {HALF if halved else EIGHTH} if coarse else {HALF, EIGHTH}
    return {phrase: name for phrase, name in WEIGHTS.items() if phrase not in same}


def has_param(specs: Sequence[OpSpec], param: str) -> bool:
    return all(any(p.name == param for p in spec.params) for spec in specs)


def with_args_swapped(node: t.Call) -> t.Call:
    first, second, *rest = node.args
    return t.replace(node, args=(second, first, *rest))
