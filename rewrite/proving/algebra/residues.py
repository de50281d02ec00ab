"""Exact numbers modulo a prime: the arithmetic below the finite-field check.

A residue is a whole number in 0..p - 1, held in float64. A product of two needs 48 bits, so it is
exact; sums are exact as long as they stay below 2^53.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ...rules.scope import NoNumber

PRIME = (1 << 24) - 3
ROOTS = (PRIME - 1) // 2
"""Variables are squares of 1..ROOTS, so that each has one root: numbers that stand for positive
ones."""

EXACT = 2.0**53


class Unexpressible(NoNumber):
    """A computation that residues cannot follow: an order, a branch, a whole number of a value."""


class Vanished(NoNumber):
    """A denominator is zero for the numbers drawn; others may do."""


# -- arithmetic ------------------------------------------------------------------------------------


def reduced(value: Tensor) -> Tensor:
    """`value` modulo p. Raises `Unexpressible` where a sum was too long to be exact."""
    if value.numel() and float(value.abs().max()) >= EXACT:
        raise Unexpressible("a sum of more products than float64 holds exactly")
    return torch.remainder(value, PRIME)


def product(left: Tensor, right: Tensor) -> Tensor:
    return torch.remainder(left * right, PRIME)


def power(base: Tensor, exponent: int) -> Tensor:
    """`base ^ exponent` by repeated squaring; a negative exponent inverts."""
    if exponent < 0:
        return power(inverse(base), -exponent)
    result = torch.ones_like(base)
    while exponent:
        result = product(result, base) if exponent & 1 else result
        base, exponent = product(base, base), exponent >> 1
    return result


def inverse(value: Tensor) -> Tensor:
    """1 / value. Raises `Vanished` for zero."""
    if bool((value == 0).any()):
        raise Vanished("a denominator")
    if value.numel() > 64:
        return power(value, PRIME - 2)
    found = [float(pow(int(v), -1, PRIME)) for v in value.flatten().tolist()]
    return torch.tensor(found, dtype=torch.float64).reshape(value.shape)


def of_fraction(number: Fraction) -> int:
    """Raises `Vanished` for a multiple of 1 / p."""
    if number.denominator % PRIME == 0:
        raise Vanished("a denominator")
    return number.numerator * pow(number.denominator, -1, PRIME) % PRIME


# -- functions that nothing is known about ---------------------------------------------------------

_ODD = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Multipliers of SplitMix64 (Steele, Lea and Flood 2014) as signed numbers; products wrap."""


def mixed(value: Tensor) -> Tensor:
    """A pseudo-random permutation of int64."""
    value = value * _ODD[0]
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * _ODD[1]
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * _ODD[2]
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def digest(value: Tensor) -> Tensor:
    """One int64 number for all elements and their order."""
    whole = value.to(torch.int64).flatten()
    places = torch.arange(1, whole.numel() + 1) * _ODD[1]
    shape = torch.tensor([*value.shape, value.dim()])
    return mixed(mixed(whole + places).sum() + mixed(shape + torch.arange(len(shape))).sum())


def as_residues(value: Tensor) -> Tensor:
    return torch.remainder(value & ((1 << 52) - 1), PRIME).double()


# -- numbers of a rule -----------------------------------------------------------------------------


class Exact(float):
    """A float that remembers which fraction it stands for: 0.1 * 3 is three tenths."""

    numbers: Numbers
    fraction: Fraction

    def _with(self, other: Any, operation: str, swapped: bool = False) -> Any:
        if not isinstance(other, (int, float)) or not math.isfinite(other):
            return NotImplemented
        pair = (self.fraction, self.numbers.fraction(other))
        try:
            result = getattr(pair[swapped], operation)(pair[not swapped])
        except ZeroDivisionError as error:
            raise Vanished("a denominator") from error
        return self.numbers.exact(result)

    def __add__(self, other: Any) -> Any:
        return self._with(other, "__add__")

    def __sub__(self, other: Any) -> Any:
        return self._with(other, "__sub__")

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, "__sub__", swapped=True)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, "__mul__")

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, "__truediv__")

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(other, "__truediv__", swapped=True)

    def __pow__(self, other: Any, modulo: None = None) -> Any:
        whole = isinstance(other, int)
        return self.numbers.exact(self.fraction**other) if whole else NotImplemented

    def __neg__(self) -> Any:
        return self.numbers.exact(-self.fraction)

    __radd__, __rmul__ = __add__, __mul__


class Numbers:
    """What the floats of one trial stand for. torch rounds an `Exact` to a plain float on its way
    in; here it is found again.
    """

    def __init__(self) -> None:
        self.known: dict[float, Fraction | None] = {}

    def exact(self, number: Fraction | float) -> Exact:
        fraction = number if isinstance(number, Fraction) else self.fraction(number)
        made = Exact(float(fraction))
        made.numbers, made.fraction = self, fraction
        before = self.known.setdefault(float(made), fraction)
        if before != fraction:
            self.known[float(made)] = None
        return made

    def fraction(self, number: float) -> Fraction:
        """The shortest decimal that is this float; what it was computed as, if that is known. What
        was rounded on its way here (`exp(0.5)`) stands for no number that is known.
        """
        if not math.isfinite(number):
            raise Unexpressible(f"{number} is no number of the field")
        if isinstance(number, Exact):
            return number.fraction
        if isinstance(number, int):
            return Fraction(int(number))
        found = self.known.get(number, _UNKNOWN)
        if found is None:
            raise Unexpressible(f"two exact numbers are both {number} as a float")
        if found is not _UNKNOWN:
            return found
        if _is_rounded(float(number)):
            raise Unexpressible(f"{number} was rounded; what it stands for is not known")
        return Fraction(repr(float(number)))

    def residue(self, number: float) -> int:
        return of_fraction(self.fraction(number))


_UNKNOWN: Any = object()


def _is_rounded(number: float) -> bool:
    """Whether it is neither a decimal that people write nor a short binary fraction."""
    digits = len(repr(number).partition("e")[0].replace(".", "").strip("-0"))
    return digits > WRITTEN and Fraction(number).numerator.bit_length() > SHORT


WRITTEN = 15
"""Digits of a decimal that a float64 tells from every other one."""

SHORT = 32
"""Bits of a number that more than one rounding to float64 is not likely to leave."""


# -- how certain -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Track:
    """Bounds for every element of a value, as a quotient of polynomials in the drawn numbers.

    num, den: their degrees. opaque: how many results of opaque functions it is computed from, whose
    arguments have degrees up to `deep` (numerator and denominator together). free: whether opaque
    functions or free variables are in it at all.
    """

    num: int = 0
    den: int = 0
    opaque: int = 0
    deep: int = 0
    free: bool = False

    def _other(self, other: Track, num: int, den: int) -> Track:
        deep, free = max(self.deep, other.deep), self.free or other.free
        return Track(num, den, self.opaque + other.opaque, deep, free)

    def plus(self, other: Track) -> Track:
        num = max(self.num + other.den, other.num + self.den)
        return self._other(other, num, self.den + other.den)

    def times(self, other: Track) -> Track:
        return self._other(other, self.num + other.num, self.den + other.den)

    def beside(self, other: Track) -> Track:
        """Of elements that come from either."""
        joint = self._other(other, max(self.num, other.num), max(self.den, other.den))
        return Track(joint.num, joint.den, max(self.opaque, other.opaque), joint.deep, joint.free)

    def inverse(self) -> Track:
        return Track(self.den, self.num, self.opaque, self.deep, self.free)

    def summed(self, count: int) -> Track:
        """Of a sum of `count` such elements, each with a denominator of its own."""
        more = max(count, 1) - 1
        num, den = self.num + more * self.den, self.den * (more + 1)
        return Track(num, den, self.opaque * (more + 1), self.deep, self.free)

    def to_the(self, exponent: int) -> Track:
        base = self if exponent >= 0 else self.inverse()
        n = abs(exponent)
        return Track(base.num * n, base.den * n, base.opaque, base.deep, base.free)

    def hidden(self, elements: int = 1) -> Track:
        """Of an opaque function of `elements` such elements: a new variable."""
        deep = max(self.deep, self.num + self.den)
        return Track(1, 0, self.opaque * elements + 1, deep, True)


def degree(left: Track, right: Track) -> int:
    """Of the polynomial that is zero where both sides are equal."""
    return max(left.num + right.den, right.num + left.den)


def survival(left: Track, right: Track) -> float:
    """How likely two different expressions agree in one trial, at most: Schwartz-Zippel for the
    degree, and for any two arguments of opaque functions that they meet by chance. 1 where the
    bound says nothing.
    """
    count, deep = left.opaque + right.opaque, 2 * max(left.deep, right.deep)
    bad = degree(left, right) + deep * count * (count - 1) // 2
    legal = ROOTS - left.den - right.den
    return min(1.0, bad / legal) if legal > 0 else 1.0
