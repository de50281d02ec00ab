"""Dimension expressions over integers: compiled to closures, solved for the dimensions of actual
shapes.

A declaration such as `x: f[N, G * C, H, W]` and the shape (2, 8, 5, 5) give equations; with G
known, they say what N, C, H and W are. Nothing is executed as text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.tree import tree as t
from ...grammar.tree.fold import Fold
from ...grammar.tree.operators import ARITHMETIC, COMPARISONS

Scope = dict[str, Any]
Shape = tuple[int, ...]
Evaluate = Callable[[Mapping[str, Any]], Any]

REST = "..."
"""The key under which a scope keeps the axes that `...` stands for."""

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **ARITHMETIC, **COMPARISONS, "and": lambda a, b: a and b, "or": lambda a, b: a or b,
}  # fmt: skip
_UNARY: dict[str, Callable[[Any], Any]] = {"-": operator.neg, "not": operator.not_}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numel": math.prod,
    "rank": len,
    "max": max,
    "min": min,
    "sum": sum,
}
"""What an op declaration may call. An input's name stands for its shape there: `numel(x)`."""

# -- expressions to closures -----------------------------------------------------------------------


def compiled(expr: t.Expr) -> Evaluate:
    """A function from a scope to the value of `expr`.

    Raises T001 for what an op declaration cannot hold.
    """
    return _CLOSURES.of(expr)


def names_of(expr: t.Expr) -> frozenset[str]:
    """The names that must be in scope before `expr` has a value."""
    called = {node.function for node in t.walk(expr) if isinstance(node, t.Call)}
    return frozenset(
        node.text for node in t.walk(expr) if isinstance(node, t.Name) and node not in called
    )


class _Closures(Fold[Evaluate]):
    """Functions from a scope to the value of an expression."""

    def name(self, expr: t.Name) -> Evaluate:
        return operator.itemgetter(expr.text)

    def literal(self, expr: t.Number | t.Frac | t.String | t.Constant) -> Evaluate:
        value = expr.value
        return lambda scope: value

    def items(self, expr: t.Tuple | t.List) -> Evaluate:
        items = [self.of(item) for item in expr.items]
        return lambda scope: tuple(item(scope) for item in items)

    def attribute(self, expr: t.Attribute) -> Evaluate:
        if not expr.name.isdigit():
            raise _unsupported(expr)
        value, index = self.of(expr.value), int(expr.name)
        return lambda scope: value(scope)[index]

    def unary(self, expr: t.Unary) -> Evaluate:
        apply, operand = _UNARY[expr.op], self.of(expr.operand)
        return lambda scope: apply(operand(scope))

    def binary(self, expr: t.Binary) -> Evaluate:
        if expr.op not in _BINARY:
            raise _unsupported(expr)
        apply, left, right = _BINARY[expr.op], self.of(expr.left), self.of(expr.right)
        return lambda scope: apply(left(scope), right(scope))

    def call(self, expr: t.Call) -> Evaluate:
        name = expr.function.text if isinstance(expr.function, t.Name) else ""
        if name not in _FUNCTIONS or expr.keywords:
            raise _unsupported(expr)
        function, args = _FUNCTIONS[name], [self.of(arg) for arg in expr.args]
        return lambda scope: function(*(arg(scope) for arg in args))

    def other(self, expr: t.Expr) -> Evaluate:
        raise _unsupported(expr)


_CLOSURES = _Closures()


def _unsupported(expr: t.Expr) -> LissomError:
    known = ", ".join(sorted(_FUNCTIONS))
    return fail(
        "T001",
        "an op declaration cannot hold this expression",
        Label(expr.span),
        help=f"it may use names, numbers, arithmetic, comparisons, `attr.0` and {known}",
    )


# -- shapes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeclaredAxis:
    """One declared axis: a closure for its extent, and the dimension it is if it is nothing
    else.
    """

    expr: t.Expr
    evaluate: Evaluate
    names: frozenset[str]
    alone: str | None


@dataclass(frozen=True, slots=True)
class ShapeSpec:
    """A declared shape: axes, then `...` (if `rest`), then axes."""

    owner: str
    before: tuple[DeclaredAxis, ...]
    rest: bool
    after: tuple[DeclaredAxis, ...]

    @property
    def least(self) -> int:
        """The smallest rank that fits."""
        return len(self.before) + len(self.after)

    def fits(self, rank: int) -> bool:
        return rank >= self.least if self.rest else rank == self.least

    def evaluate(self, scope: Mapping[str, Any]) -> Shape:
        before = tuple(axis.evaluate(scope) for axis in self.before)
        if not self.rest:
            return before
        return (*before, *scope[REST], *(axis.evaluate(scope) for axis in self.after))

    @property
    def names(self) -> frozenset[str]:
        needed = frozenset((REST,)) if self.rest else frozenset()
        return needed.union(*(axis.names for axis in self.before + self.after))


def shape_spec(owner: str, declared: t.Type) -> ShapeSpec | None:
    """The axes of a declared type; None where it says nothing about the shape (`t`)."""
    if declared.dims is None:
        return None
    split = [i for i, dim in enumerate(declared.dims) if isinstance(dim, t.DimRest)]
    if len(split) > 1:
        raise fail("S002", "a shape has room for one `...`", Label(declared.span))
    end = split[0] if split else len(declared.dims)
    before, after = declared.dims[:end], declared.dims[end + 1 :]
    return ShapeSpec(owner, tuple(map(_axis, before)), bool(split), tuple(map(_axis, after)))


def _axis(dim: t.Dim) -> DeclaredAxis:
    if not isinstance(dim, t.Expr):
        raise fail("S002", "an op declares extents, not ranges of them", Label(dim.span))
    alone = dim.text if isinstance(dim, t.Name) else None
    return DeclaredAxis(dim, compiled(dim), names_of(dim), alone)


def unify_dims(
    pairs: Iterable[tuple[ShapeSpec, Shape]], scope: Scope, broadcasting: bool = False
) -> None:
    """Add to `scope` every dimension that the shapes determine. Raises S002 where they disagree.

    `broadcasting`: what `...` stands for in one shape broadcasts with what it is in another.
    """
    waiting: list[_Equation] = []
    for spec, shape in pairs:
        _check_rank(spec, shape)
        _unify_rest(spec, shape, scope, broadcasting)
        last = len(shape) - len(spec.after)
        sizes = (*shape[: len(spec.before)], *shape[last:]) if spec.rest else shape
        for axis, size in zip(spec.before + spec.after, sizes, strict=True):
            if axis.alone is not None and scope.setdefault(axis.alone, size) == size:
                continue
            waiting.append(_Equation(spec.owner, axis, size))
    _solve(waiting, scope)


def _check_rank(spec: ShapeSpec, shape: Shape) -> None:
    if spec.fits(len(shape)):
        return
    wanted = f"at least {spec.least}" if spec.rest else str(spec.least)
    labels = [Label(axis.expr.span) for axis in spec.before[:1]]
    message = f"`{spec.owner}` has {len(shape)} axes, {wanted} are declared"
    raise fail("S002", message, *labels, note=f"its shape is {list(shape)}")


def _unify_rest(spec: ShapeSpec, shape: Shape, scope: Scope, broadcasting: bool) -> None:
    if not spec.rest:
        return
    found = shape[len(spec.before) : len(shape) - len(spec.after)]
    known = scope.setdefault(REST, found)
    together = broadcast((known, found)) if broadcasting else (known if known == found else None)
    if together is None:
        message = f"`...` is {list(known)} elsewhere and {list(found)} in `{spec.owner}`"
        raise fail("S002", message, *(Label(axis.expr.span) for axis in spec.before[:1]))
    scope[REST] = together


@dataclass(frozen=True, slots=True)
class _Equation:
    """One axis of `owner`, and its size."""

    owner: str
    axis: DeclaredAxis
    size: int

    def check(self, scope: Scope) -> None:
        if self.axis.evaluate(scope) != self.size:
            raise self.refuse(scope)

    def refuse(self, scope: Scope) -> LissomError:
        names = sorted(self.axis.names & scope.keys())
        known = ", ".join(f"{name} = {scope[name]}" for name in names)
        message = f"an axis of `{self.owner}` has size {self.size}, its declaration says otherwise"
        return fail("S002", message, Label(self.axis.expr.span, known or "declared here"))

    def solve(self, name: str, scope: Scope) -> None:
        """Give `name`, the one unknown, the value for which the axis has its size.

        It occurs once, below `*`, `+` or `-`.
        """
        expr, value = self.axis.expr, self.size
        while not isinstance(expr, t.Name):
            if not isinstance(expr, t.Binary) or expr.op not in ("*", "+", "-"):
                raise self.refuse(scope)
            in_left = name in names_of(expr.left)
            inner, other = (expr.left, expr.right) if in_left else (expr.right, expr.left)
            known = compiled(other)(scope)
            if expr.op == "*" and (known == 0 or value % known):
                raise self.refuse(scope)
            expr, value = inner, _undo(expr.op, value, known, in_left)
        scope[name] = value
        self.check(scope)


def _solve(waiting: list[_Equation], scope: Scope) -> None:
    """Axes with one unknown are turned around; those with none are checked; until nothing moves."""
    while waiting:
        left = []
        for equation in waiting:
            unknown = equation.axis.names - scope.keys()
            if not unknown:
                equation.check(scope)
            elif len(unknown) == 1:
                equation.solve(next(iter(unknown)), scope)
            else:
                left.append(equation)
        if len(left) == len(waiting):
            return
        waiting = left


def _undo(op: str, value: int, known: int, in_left: bool) -> int:
    if op == "*":
        return value // known
    if op == "+":
        return value - known
    return value + known if in_left else known - value


def broadcast(shapes: Iterable[Shape]) -> Shape | None:
    """The common shape under PyTorch's broadcasting, or None if there is none."""
    found: list[int] = []
    for shape in shapes:
        found = [1] * (len(shape) - len(found)) + found
        for i in range(1, len(shape) + 1):
            if found[-i] == 1:
                found[-i] = shape[-i]
            elif shape[-i] not in (1, found[-i]):
                return None
    return tuple(found)
