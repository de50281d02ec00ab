"""V001 and V002: guards that no instance satisfies, and guards that every instance satisfies.

Intervals decide a guard alone, for all instances. Sampling decides the guards together, and says
so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

from ..algebra.symbolic import Apply, Poly, Symbol
from ..algebra.unify import Shape
from ..diagnostics import Label
from ..tree import clauses
from ..tree import tree as t
from ..tree.operators import COMPARISONS
from .report import Messages
from .sampling import Sampler

AT_LEAST = "weights have sizes of at least 1, activations of at least 0"

_FLIP = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __mul__(self, other: Interval) -> Interval:
        ends = [_times(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(ends), max(ends))


EVERYTHING = Interval(-math.inf, math.inf)


def _times(a: float, b: float) -> float:
    return 0.0 if 0 in (a, b) else a * b


def interval(poly: Poly, lows: Mapping[str, int], flags: set[str]) -> Interval:
    """The values that a polynomial can take when every symbol is at least `lows` says, or 1."""
    total = Interval(0, 0)
    for monomial, coefficient in poly.terms:
        part = Interval(float(coefficient), float(coefficient))
        for atom in (atom for atom, exponent in monomial for _ in range(exponent)):
            part = part * _atom(atom, lows, flags)
        total = total + part
    return total


def _atom(atom: Symbol | Apply, lows: Mapping[str, int], flags: set[str]) -> Interval:
    if isinstance(atom, Symbol):
        return _symbol(atom.name, lows, flags)
    parts = [interval(arg, lows, flags) for arg in atom.args]
    if atom.function == "floor":
        top, bottom = parts
        return Interval(0, top.high) if top.low >= 0 and bottom.low >= 1 else EVERYTHING
    choose: Callable[..., float] = min if atom.function == "min" else max
    return Interval(choose(p.low for p in parts), choose(p.high for p in parts))


def _symbol(name: str, lows: Mapping[str, int], flags: set[str]) -> Interval:
    """An attribute such as `dim` may be negative: nothing is said of it."""
    if name in flags:
        return Interval(0, 1)
    return Interval(lows.get(name, 1), math.inf) if name[0].isupper() else EVERYTHING


def decided(guard: t.Expr, sampler: Sampler) -> bool | None:
    """What intervals say of a comparison, None if they leave it open."""
    if not isinstance(guard, t.Binary):
        return None
    if guard.op in ("and", "or"):
        parts = [decided(guard.left, sampler), decided(guard.right, sampler)]
        decisive = guard.op == "or"
        return decisive if decisive in parts else (not decisive if None not in parts else None)
    if guard.op not in _FLIP:
        return None
    terms, solver = sampler.model.terms, sampler.model.solver
    left, right = terms.number(guard.left), terms.number(guard.right)
    if left is None or right is None or _reals(sampler, left, right):
        return None
    gap = interval(solver.resolve(left - right), _least(sampler), sampler.model.flags)
    return _sign(guard.op, gap)


def _least(sampler: Sampler) -> dict[str, int]:
    """The smallest value of each size: a batch or an image may be empty, a weight never is."""
    model = sampler.model
    shapes = [model.solver.shape(shape) for shape in model.before.values()]
    weights = [w.shape for i in model.left for w in i.weights.values() if w.shape is not None]
    full = {n for shape in weights for n in _sizes(model.solver.shape(shape))}
    return model.solver.lows | dict.fromkeys({n for s in shapes for n in _sizes(s)} - full, 0)


def _sizes(shape: Shape) -> set[str]:
    return {name for axis in shape if isinstance(axis, Poly) for name in axis.symbols}


def _reals(sampler: Sampler, *polys: Poly) -> bool:
    """A share may be anything in 0..1: intervals of integers say nothing about it."""
    return any(poly.symbols & set(sampler.model.reals) for poly in polys)


def _sign(op: str, gap: Interval) -> bool | None:
    if op in ("<", "<=", ">", ">="):
        gap = gap if op in (">", ">=") else -gap
        strict = op in ("<", ">")
        if gap.low > 0 or (gap.low == 0 and not strict):
            return True
        return False if gap.high < 0 or (gap.high == 0 and strict) else None
    equal = True if gap.low == gap.high == 0 else (False if gap.low > 0 or gap.high < 0 else None)
    return equal if op == "==" or equal is None else not equal


def check_guards(rule: t.Rule, sampler: Sampler, bare: Sampler, report: Messages) -> bool:
    """Whether the guards can hold. Guards over weights or the model count as open. `bare` knows
    nothing of what the guards say, `sampler` all of it.
    """
    guards = list(clauses.guards(rule))
    for guard in guards:
        verdict = decided(guard.condition, bare)
        if verdict is False:
            note = f"shown with intervals: {AT_LEAST}"
            label = Label(guard.condition.span, "false for all sizes")
            report.error("V001", f"the rule `{rule.name}` can never apply", label, note=note)
            return False
        if verdict is True:
            note = f"shown with intervals: {AT_LEAST}"
            label = Label(guard.condition.span, "true for all sizes")
            report.warn("V002", "this guard is always true", label, note=note, help="delete it")
    sized = [guard for guard in guards if _is_sized(guard.condition, bare)]
    if not sized or sampler.instances():
        return True
    return _together(rule, sized, bare, report)


def _together(rule: t.Rule, sized: list[t.Guard], sampler: Sampler, report: Messages) -> bool:
    if _bounds_clash(sized, sampler, report, rule):
        return False
    labels = [Label(g.condition.span) for g in sized[:4]]
    message = f"no instance of `{rule.name}` was found that satisfies its guards"
    note = f"{sampler.tries} drawings of sizes and attributes were tried"
    report.warn("V001", message, *labels, note=note, help="relax one of these guards")
    return True


def _is_sized(guard: t.Expr, sampler: Sampler) -> bool:
    """Whether a guard speaks of sizes, so that a sample can decide it."""
    sample = {name: max(1, sampler.model.solver.lows[name]) for name in sampler.symbols}
    return sampler.truth.holds(guard, sample) is not None


def _bounds_clash(guards: list[t.Guard], sampler: Sampler, report: Messages, rule: t.Rule) -> bool:
    """Two guards that bound the same size from both sides with nothing in between."""
    bounds: dict[Poly, list[tuple[str, float, t.Guard]]] = {}
    for guard in guards:
        for poly, op, limit in _bounds(guard.condition, sampler):
            bounds.setdefault(poly, []).append((op, limit, guard))
    pairs = (pair for found in bounds.values() for pair in combinations(found, 2))
    for (op, limit, earlier), (other, bound, guard) in pairs:
        if guard is not earlier and _empty(op, limit, other, bound):
            label = Label(guard.condition.span, "contradicts")
            places = label, Label(earlier.condition.span, "this guard")
            message = f"the rule `{rule.name}` can never apply"
            report.error("V001", message, *places, note="shown with intervals")
            return True
    return False


def _bounds(guard: t.Expr, sampler: Sampler) -> list[tuple[Poly, str, float]]:
    """`I >= 16 and O >= 16` bounds I and O from below."""
    if not isinstance(guard, t.Binary):
        return []
    if guard.op == "and":
        return _bounds(guard.left, sampler) + _bounds(guard.right, sampler)
    if guard.op not in _FLIP or guard.op == "!=":
        return []
    terms, solver = sampler.model.terms, sampler.model.solver
    left, right = terms.number(guard.left), terms.number(guard.right)
    if left is None or right is None:
        return []
    left, right = solver.resolve(left), solver.resolve(right)
    if right.constant is not None:
        return [(left, guard.op, float(right.constant))]
    if left.constant is not None:
        return [(right, _FLIP[guard.op], float(left.constant))]
    return []


def _empty(op: str, limit: float, other: str, bound: float) -> bool:
    """Whether no number satisfies both comparisons."""
    candidates = (limit, bound, (limit + bound) / 2, min(limit, bound) - 1, max(limit, bound) + 1)
    return not any(COMPARISONS[op](c, limit) and COMPARISONS[other](c, bound) for c in candidates)
