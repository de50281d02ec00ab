"""Polynomials with other symbols, and their values for given numbers."""

from __future__ import annotations

from collections.abc import Mapping

from .symbolic import Apply, Atom, Number, Poly, Symbol, const, extreme, floordiv, power, single


def substitute(poly: Poly, values: Mapping[str, Poly]) -> Poly:
    """`poly` with symbols replaced, in normal form again."""
    if poly.symbols.isdisjoint(values):
        return poly
    total = const(0)
    for monomial, coefficient in poly.terms:
        part = const(coefficient)
        for atom, exponent in monomial:
            part = part * power(_substitute_atom(atom, values), exponent)
        total = total + part
    return total


def _substitute_atom(atom: Atom, values: Mapping[str, Poly]) -> Poly:
    if isinstance(atom, Symbol):
        return values.get(atom.name, single(atom))
    args = tuple(substitute(arg, values) for arg in atom.args)
    return floordiv(*args) if atom.function == "floor" else extreme(atom.function, args)


def evaluate(poly: Poly, values: Mapping[str, int]) -> Number:
    """The number for these values. Raises KeyError for a missing symbol, ZeroDivisionError."""
    total: Number = 0
    for monomial, coefficient in poly.terms:
        for atom, exponent in monomial:
            value = values[atom.name] if isinstance(atom, Symbol) else _apply(atom, values)
            coefficient = coefficient * (value if exponent == 1 else value**exponent)
        total += coefficient
    return total


def _apply(atom: Apply, values: Mapping[str, int]) -> Number:
    args = [evaluate(arg, values) for arg in atom.args]
    if atom.function == "floor":
        return args[0] // args[1]
    return min(args) if atom.function == "min" else max(args)
