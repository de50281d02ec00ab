"""Polynomials over dimensions, with floor division, minimum and maximum as atoms.

The normal form decides equality in the cases that occur in shapes; what it cannot decide is left
to sampling. Every symbol stands for an integer; `positive` symbols (extents, strides) are at least
1, so they may be cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, reduce

MAX_TERMS = 200
"""A polynomial with more terms is given up: shapes never come near it, hostile text could."""


class TooLarge(ValueError):
    """An expression has no normal form worth having: it is too large, or it divides by zero."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """One unknown integer. Symbols of equal name are equal."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Apply:
    """`floor(a, b)` is a // b; `min` and `max` take any number of arguments."""

    function: str
    args: tuple[Poly, ...]

    def __str__(self) -> str:
        return self.text

    @cached_property
    def text(self) -> str:
        if self.function != "floor":
            return f"{self.function}({', '.join(map(str, self.args))})"
        top, bottom = self.args
        return f"{_wrapped(top)}//{_wrapped(bottom)}"


Atom = Symbol | Apply
Monomial = tuple[tuple[Atom, int], ...]
Number = int | Fraction


def _wrapped(poly: Poly) -> str:
    text = str(poly)
    return text if text.replace(".", "").replace("_", "").isalnum() else f"({text})"


@dataclass(frozen=True)
class Poly:
    """A sum of monomials with exact coefficients: `const`, `symbol`, + - * and `floordiv`."""

    terms: tuple[tuple[Monomial, Number], ...]

    @cached_property
    def key(self) -> int:
        return hash(self.terms)

    def __hash__(self) -> int:
        return self.key

    @property
    def is_zero(self) -> bool:
        return not self.terms

    @property
    def constant(self) -> Number | None:
        """The number this is, or None."""
        if not self.terms:
            return 0
        monomial, coefficient = self.terms[0]
        return coefficient if len(self.terms) == 1 and not monomial else None

    @cached_property
    def symbols(self) -> frozenset[str]:
        """Every symbol that occurs, inside floors too."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom, _ in monomial:
                found |= _atom_symbols(atom)
        return frozenset(found)

    def __add__(self, other: Poly | int) -> Poly:
        if not self.terms:
            return as_poly(other)
        sums = dict(self.terms)
        for monomial, coefficient in as_poly(other).terms:
            sums[monomial] = sums.get(monomial, 0) + coefficient
        return _poly(sums)

    def __neg__(self) -> Poly:
        return Poly(tuple((monomial, -coefficient) for monomial, coefficient in self.terms))

    def __sub__(self, other: Poly | int) -> Poly:
        return self + -as_poly(other)

    def __mul__(self, other: Poly | int) -> Poly:
        sums: dict[Monomial, Number] = {}
        other = as_poly(other)
        if len(self.terms) * len(other.terms) > MAX_TERMS:
            raise TooLarge
        for left, a in self.terms:
            for right, b in other.terms:
                monomial = _times(left, right)
                sums[monomial] = sums.get(monomial, 0) + a * b
        return _poly(sums)

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        return _format(self)


def _atom_symbols(atom: Atom) -> frozenset[str]:
    if isinstance(atom, Symbol):
        return frozenset((atom.name,))
    return frozenset().union(*(arg.symbols for arg in atom.args))


def _poly(sums: Mapping[Monomial, Number]) -> Poly:
    kept = [(m, _plain(c)) for m, c in sums.items() if c]
    if len(kept) > MAX_TERMS:
        raise TooLarge
    return Poly(tuple(sorted(kept, key=_order) if len(kept) > 1 else kept))


def _plain(number: Number) -> Number:
    whole = isinstance(number, Fraction) and number.denominator == 1
    return number.numerator if whole and isinstance(number, Fraction) else number


def _order(term: tuple[Monomial, Number]) -> tuple[int, list[str]]:
    monomial, _ = term
    return -sum(power for _, power in monomial), [_name(atom) for atom, _ in monomial]


def _name(atom: Atom) -> str:
    return atom.name if isinstance(atom, Symbol) else atom.text


def _times(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    if max(powers.values(), default=0) > MAX_TERMS:
        raise TooLarge
    return tuple(sorted(powers.items(), key=lambda item: _name(item[0])))


def const(number: Number) -> Poly:
    return Poly((((), _plain(number)),)) if number else Poly(())


def symbol(name: str) -> Poly:
    return Poly(((((Symbol(name), 1),), 1),))


def as_poly(value: Poly | Number) -> Poly:
    return value if isinstance(value, Poly) else const(value)


def product(items: Iterable[Poly]) -> Poly:
    return reduce(lambda a, b: a * b, items, const(1))


def power(base: Poly, exponent: int) -> Poly:
    if not 0 <= exponent <= 16:
        raise TooLarge
    return product([base] * exponent)


def least(*args: Poly) -> Poly:
    return extreme("min", args)


def greatest(*args: Poly) -> Poly:
    return extreme("max", args)


def extreme(function: str, args: tuple[Poly, ...]) -> Poly:
    distinct = tuple(dict.fromkeys(args))
    numbers = [arg.constant for arg in distinct]
    if all(number is not None for number in numbers):
        choose: Callable[..., Number] = min if function == "min" else max
        return const(choose(number for number in numbers if number is not None))
    return distinct[0] if len(distinct) == 1 else single(Apply(function, distinct))


def single(atom: Atom) -> Poly:
    return Poly(((((atom, 1),), 1),))


# -- division -------------------------------------------------------------------------------------


def divide(top: Poly, bottom: Poly) -> Poly | None:
    """The exact quotient if `bottom` has one term and divides every term of `top`, else None."""
    if len(bottom.terms) != 1:
        return const(1) if top == bottom and not top.is_zero else None
    quotient: dict[Monomial, Number] = {}
    for term in top.terms:
        part = _divide_term(term, bottom.terms[0])
        if part is None:
            return None
        quotient[part[0]] = part[1]
    return _poly(quotient)


def _divide_term(
    top: tuple[Monomial, Number], bottom: tuple[Monomial, Number]
) -> tuple[Monomial, Number] | None:
    powers = dict(top[0])
    for atom, exponent in bottom[0]:
        powers[atom] = powers.get(atom, 0) - exponent
        if powers[atom] < 0:
            return None
    ratio = _ratio(top[1], bottom[1])
    if ratio is None:
        return None
    monomial = tuple(sorted(((a, p) for a, p in powers.items() if p), key=lambda i: _name(i[0])))
    return monomial, _plain(ratio)


def _ratio(top: Number, bottom: Number) -> Number | None:
    """top / bottom; None where whole numbers leave a remainder."""
    if isinstance(top, int) and isinstance(bottom, int):
        return None if top % bottom else top // bottom
    return Fraction(top) / Fraction(bottom)


def floordiv(top: Poly, bottom: Poly) -> Poly:
    """top // bottom for a positive bottom, in normal form.

    Whole multiples of the divisor move out, and ((a // b) + r) // c becomes
    (a + r * b) // (b * c): it holds for all integers with positive b and c, and is what makes
    successive strides multiply.
    """
    if bottom.is_zero:
        raise TooLarge
    whole, rest = _split(top, bottom)
    if rest.is_zero:
        return whole
    if bottom.constant and rest.constant is not None:
        return whole + const(rest.constant // bottom.constant)
    nested = _nested_floor(rest)
    if nested is None:
        return whole + single(Apply("floor", (rest, bottom)))
    inner_top, inner_bottom = nested.args
    remaining = rest - single(nested)
    return whole + floordiv(inner_top + remaining * inner_bottom, inner_bottom * bottom)


def modulo(top: Poly, bottom: Poly) -> Poly:
    return top - bottom * floordiv(top, bottom)


def _split(top: Poly, bottom: Poly) -> tuple[Poly, Poly]:
    """top = whole * bottom + rest, with as much in `whole` as divides term by term."""
    whole = divide(top, bottom)
    if whole is not None or len(bottom.terms) != 1:
        return (const(0), top) if whole is None else (whole, const(0))
    parts: dict[Monomial, Number] = {}
    rest: dict[Monomial, Number] = {}
    for term in top.terms:
        part = _divide_term(term, bottom.terms[0])
        if part is None:
            rest[term[0]] = term[1]
        else:
            parts[part[0]] = part[1]
    return _poly(parts), _poly(rest)


def _nested_floor(top: Poly) -> Apply | None:
    """A floor that stands alone as a term of `top`."""
    for monomial, coefficient in top.terms:
        alone = coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1
        atom = monomial[0][0] if alone else None
        if isinstance(atom, Apply) and atom.function == "floor":
            return atom
    return None


def common(poly: Poly, keep: Callable[[str], bool] = lambda name: True) -> Poly:
    """The largest monomial of symbols accepted by `keep` that divides every term."""
    if poly.is_zero:
        return const(1)
    shared = dict(poly.terms[0][0])
    for monomial, _ in poly.terms[1:]:
        powers = dict(monomial)
        shared = {atom: min(p, powers.get(atom, 0)) for atom, p in shared.items()}
    kept = {a: p for a, p in shared.items() if p and isinstance(a, Symbol) and keep(a.name)}
    return Poly(((tuple(sorted(kept.items(), key=lambda i: _name(i[0]))), 1),))


def linear_in(poly: Poly, name: str) -> tuple[Poly, Poly] | None:
    """(a, b) with poly = a * name + b and no `name` in a or b, or None."""
    inside: dict[Monomial, Number] = {}
    outside: dict[Monomial, Number] = {}
    for monomial, coefficient in poly.terms:
        powers = dict(monomial)
        if powers.pop(Symbol(name), 0) == 1:
            inside[tuple(powers.items())] = coefficient
        else:
            outside[monomial] = coefficient
    a, b = _poly(inside), _poly(outside)
    return None if a.is_zero or name in a.symbols | b.symbols else (a, b)


# -- writing --------------------------------------------------------------------------------------


def _format(poly: Poly) -> str:
    if poly.is_zero:
        return "0"
    ordered = sorted(poly.terms, key=lambda term: (not term[0], term[1] < 0))
    text = "".join(_format_term(monomial, coefficient) for monomial, coefficient in ordered)
    return text.removeprefix(" + ") if text.startswith(" + ") else "-" + text.removeprefix(" - ")


def _format_term(monomial: Monomial, coefficient: Number) -> str:
    sign, size = (" - ", -coefficient) if coefficient < 0 else (" + ", coefficient)
    factors = [_format_power(atom, exponent, len(monomial) > 1) for atom, exponent in monomial]
    if size != 1 or not factors:
        factors.insert(0, str(size) if isinstance(size, int) else f"{float(size):g}")
    return sign + "*".join(factors)


def _format_power(atom: Atom, exponent: int, in_product: bool) -> str:
    floor = isinstance(atom, Apply) and atom.function == "floor"
    text = f"({atom})" if floor and (in_product or exponent > 1) else str(atom)
    return text if exponent == 1 else f"{text}^{exponent}"
