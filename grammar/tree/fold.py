"""What an expression comes to in one domain: numbers, sizes, kinds, closures."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from . import expr as t

V = TypeVar("V")

_METHODS: dict[type[t.Expr], str] = {
    t.Name: "name", t.Number: "literal", t.Frac: "literal", t.String: "literal",
    t.Constant: "literal", t.Tuple: "items", t.List: "items", t.Attribute: "attribute",
    t.Subscript: "subscript", t.Unary: "unary", t.Binary: "binary", t.Call: "call",
    t.Quantifier: "quantifier",
}  # fmt: skip


class Fold(Generic[V]):
    """A domain has a method for each kind of expression, and `other` for those that it leaves out.
    The methods ask `of` for the parts of an expression. `more` goes to each method as it is.
    """

    __slots__ = ()
    _of_kind: ClassVar[dict[type[t.Expr], Any]]

    def __init_subclass__(cls) -> None:
        other = getattr(cls, "other", None)
        cls._of_kind = {kind: getattr(cls, name, other) for kind, name in _METHODS.items()}

    def of(self, expr: t.Expr, *more: Any) -> V:
        return self._of_kind[type(expr)](self, expr, *more)


def literal(expr: t.Expr) -> Any:
    """The value of a literal, a signed number included; None for anything else."""
    if isinstance(expr, t.Unary) and expr.op == "-":
        number = expr.operand
        return -number.value if isinstance(number, (t.Number, t.Frac)) else None
    return expr.value if isinstance(expr, (t.Number, t.Frac, t.String, t.Constant)) else None
