"""One term of a rule: what is known of it, and arithmetic with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ..algebra.symbolic import Poly, divide, floordiv, modulo, power
from ..algebra.unify import Axis, Shape
from ..tree import tree as t


@dataclass(frozen=True, slots=True)
class Term:
    """`shape` of an array, `number` of an integer, `items` of a tuple; None for what is not known.

    `presence` is 1 for what is there, a symbol in {0, 1} for a weight that may be absent.
    """

    shape: Shape | None = None
    number: Poly | None = None
    items: tuple[Term, ...] | None = None
    presence: Poly | None = None
    word: str = ""


UNKNOWN = Term()
SCALAR = Term(shape=())


@dataclass(frozen=True, slots=True)
class Stop:
    """A slice `:n`, or `:` with None."""

    size: Poly | None


DATA = Term(word="data")
"""An integer that only the weights decide."""


def sliced(axis: Axis, item: object) -> list[Axis]:
    if isinstance(item, Stop):
        return [axis if item.size is None else item.size]
    return []


def exact(number: t.Number | t.Frac | t.Constant) -> int | Fraction:
    if isinstance(number, t.Frac):
        return Fraction(number.percent) / 100
    if isinstance(number, t.Number) and isinstance(number.value, float):
        return Fraction(number.text)
    return int(number.value or 0)


def _floor(left: Poly, right: Poly) -> Poly | None:
    return None if right.is_zero else floordiv(left, right)


def _mod(left: Poly, right: Poly) -> Poly | None:
    return None if right.is_zero else modulo(left, right)


def _power(left: Poly, right: Poly) -> Poly | None:
    exponent = right.constant
    return power(left, exponent) if isinstance(exponent, int) else None


ARITHMETIC: dict[str, Callable[[Poly, Poly], Poly | None]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": divide,
    "//": _floor, "mod": _mod, "^": _power, "@": lambda a, b: None,
}  # fmt: skip


def paired(op: str, left: Term, right: Term) -> Term:
    """Arithmetic on pairs, element by element; a number counts for each."""
    count = len(left.items or right.items or ())
    pairs = zip(_spread(left, count), _spread(right, count), strict=False)
    items = []
    for a, b in pairs:
        if a.number is None or b.number is None:
            items.append(UNKNOWN)
        else:
            items.append(Term((), ARITHMETIC[op](a.number, b.number)))
    return Term(items=tuple(items))


def _spread(term: Term, count: int) -> tuple[Term, ...]:
    return term.items if term.items is not None else (term,) * count
