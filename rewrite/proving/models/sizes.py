"""Extents that satisfy the declaration of an op and the shape clauses of a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...ops.dims import REST, DeclaredAxis, ShapeSpec, compiled, names_of, unify_dims
from ..choices.source import ChoiceSource, Unsuitable
from .settings import divisors

EXTENTS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Small first: draws shrink to 1. Odd, prime and even extents all occur."""

SPATIAL = (5, 4, 6, 7, 3, 8, 9, 11, 12, 1, 2)
"""Extents of values behind the channels, mostly large enough for a kernel."""

EMPTY_AXES = (0, 0, 0, 1, 2, 3)
"""Which axis is empty where one is: mostly that of the samples."""

KERNEL = (3, 2, 1, 3, 5, 4)
"""Extents of weights behind the channels."""


class Extents:
    """Draws extents. `hints` are numbers that the rule mentions: extents around them meet its
    bounds from both sides. `empty` is an axis of inputs without any extent, mostly None.
    """

    def __init__(self, source: ChoiceSource, hints: Sequence[int]) -> None:
        self.source = source
        self.empty = source.choice(EMPTY_AXES) if source.chance(3) else None
        near = {n for hint in hints for n in (hint - 1, hint, hint + 1) if 1 <= n <= 40}
        self.pool = [*EXTENTS, *sorted(near - set(EXTENTS))]
        self.hinted = sorted(near)

    def draw(self, axis: int = 0) -> int:
        if axis == self.empty:
            return 0
        return self.drawn(axis)

    def drawn(self, axis: int = 0) -> int:
        """As `draw`, but never empty."""
        if self.hinted and self.source.chance(40):
            return self.source.choice(self.hinted)
        return self.source.choice(SPATIAL if axis >= 2 else self.pool)

    def _of_weight(self, axis: int) -> int:
        return self.source.choice(KERNEL) if axis >= 2 else self.drawn(axis)

    # -- a rule's clause ---------------------------------------------------------------------------

    def of_clause(self, dims: Sequence[t.Dim], known: dict[str, Any], rest: int) -> tuple[int, ...]:
        """A shape that fits `x : f[N, C, ...]`, with `rest` extents for the `...`; binds new
        names.
        """
        shape: list[int] = []
        for dim in dims:
            count = rest if isinstance(dim, t.DimRest) else 1
            shape += [self._of_dim(dim, known, len(shape) + i) for i in range(count)]
        return tuple(shape)

    def _of_dim(self, dim: t.Dim, known: dict[str, Any], axis: int) -> int:
        if isinstance(dim, t.DimRest) or (isinstance(dim, t.Name) and dim.text == "_"):
            return self.draw(axis)
        if isinstance(dim, t.DimRange):
            return self.source.integer(int(_value(dim.low, known)), int(_value(dim.high, known)))
        if isinstance(dim, t.Name):
            return known.setdefault(dim.text, self.draw(axis))
        for name in sorted(names_of(dim) - known.keys()):
            known[name] = self.draw(axis)
        return int(_value(dim, known))

    # -- an op's declaration -----------------------------------------------------------------------

    def solve(self, spec: ShapeSpec, shape: Sequence[int], scope: dict[str, Any]) -> None:
        """Binds the dimensions of a declared shape to a given one. Where an axis is a product of
        unknowns, its divisors are drawn.
        """
        if not spec.fits(len(shape)):
            raise Unsuitable(f"{len(shape)} axes")
        last = len(shape) - len(spec.after)
        ends = (*shape[: len(spec.before)], *shape[last:])
        for axis, extent in zip(spec.before + spec.after, ends, strict=True):
            self.solve_axis(axis, extent, scope)
        if spec.rest:
            scope.setdefault(REST, tuple(shape[len(spec.before) : last]))

    def solve_axis(self, axis: DeclaredAxis, extent: int, scope: dict[str, Any]) -> None:
        left = max(extent, 1)
        for name in sorted(axis.names - scope.keys())[:-1]:
            scope[name] = self.source.choice(divisors(left))
            left //= scope[name]
        try:
            unify_dims([(ShapeSpec("", (axis,), False, ()), (extent,))], scope)
        except LissomError as error:
            raise Unsuitable(str(error)) from error

    def of_spec(
        self, spec: ShapeSpec, scope: dict[str, Any], rest: int, *, weight: bool = False
    ) -> tuple[int, ...]:
        """A shape that fits a declared one; draws the dimensions that are not known yet."""
        for number, axis in enumerate(spec.before + spec.after):
            for name in sorted(axis.names - scope.keys()):
                scope[name] = self._of_weight(number) if weight else self.draw(number)
        if spec.rest and REST not in scope:
            scope[REST] = tuple(self.draw(len(spec.before) + i) for i in range(rest))
        return tuple(int(size) for size in spec.evaluate(scope))


def _value(expr: t.Expr, known: Mapping[str, Any]) -> Any:
    try:
        return compiled(expr)(known)
    except (LissomError, KeyError, TypeError, ArithmeticError) as error:
        raise Unsuitable(expr.span.text) from error
