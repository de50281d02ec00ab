"""What a rule computes at a site when its weights are residues."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor, fx

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...match.site import Site, bind_all
from ...ops.call import tensor_at
from ...rules.scope import ParamRef, Scope
from .field_tensor import Field, World
from .residues import Unexpressible

FAILURES = (
    Unexpressible, LissomError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError,
    AttributeError,
)  # fmt: skip
"""What a function raises that cannot compute with residues."""


class Weights:
    """A residue for every number of every weight, drawn when it is first asked for. Tied weights
    are one.
    """

    def __init__(self, site: Site, world: World) -> None:
        self.root, self.world = site.calls[0].root, world
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._drawn: dict[Any, Any] = {}
        norms = [call for call in site.calls if call.op.keeps_statistics]
        self._eps = {c.params["running_var"]: c.attrs["eps"] for c in reversed(norms)}

    def at(self, path: str) -> Any:
        held = tensor_at(self.root, path)
        place = (held.data_ptr() or id(held), held.shape, held.stride())
        if place not in self._drawn:
            self._drawn[place] = self._draw(path, held)
        if isinstance(self._drawn[place], Field):
            self.shapes[path] = tuple(held.shape)
        return self._drawn[place]

    def _draw(self, path: str, held: Tensor) -> Any:
        if not held.is_floating_point():
            return held.detach().clone()
        if path in self._eps:
            return self.world.variance(held.shape, self._eps[path])
        return self.world.variable(held.shape)


class FieldScope(Scope):
    """The names of a site, with residues for weights.

    Where a function cannot take residues (an SVD), numbers of the shapes that it really gave take
    the place of its floating results, and nothing is assumed about them; whole numbers stay.
    conditions: tests of equality that no residue passes, but the site did. assumed: the calls whose
    results became free.
    """

    def __init__(self, site: Site, drawn: Weights, names: Mapping[str, Any] | None = None) -> None:
        base = site.scope
        known = base.names if names is None else names
        super().__init__(known, base.functions, base.questions, base.state)
        self.site, self.drawn, self.world = site, drawn, drawn.world
        self.real = Scope(known, base.functions, base.questions, base.state)
        self.conditions: list[str] = []
        self.assumed: dict[str, None] = {}
        self.expected: t.Binding | None = None

    def child(self, names: Mapping[str, Any]) -> Scope:
        scope = FieldScope(self.site, self.drawn, {**self.names, **names})
        scope.real = self.real.child(names)
        scope.conditions, scope.assumed = self.conditions, self.assumed
        return scope

    def bind_lets(self) -> None:
        for clause in self.site.rule.source.all(t.Let):
            for binding in clause.bindings:
                self.expected = binding
                bind_all(self, [binding])
        self.expected = None

    def unmet(self) -> str:
        """A guard that the site passed and residues do not: the identity may need it."""
        for clause in self.site.rule.source.all(t.Where):
            for guard in clause.guards:
                if isinstance(guard, t.Guard):
                    self._ask(guard)
        return self.conditions[0] if self.conditions else ""

    def _ask(self, guard: t.Guard) -> None:
        try:
            held = bool(self.number(guard.condition))
        except FAILURES:
            held = False
        if not held:
            self.conditions.append(guard.condition.span.flat)

    # -- values ------------------------------------------------------------------------------------

    def plain(self, value: Any) -> Any:
        if isinstance(value, ParamRef):
            return self.drawn.at(value.path)
        if isinstance(value, fx.Node) and value.op == "get_attr":
            return self.drawn.at(str(value.target))
        if isinstance(value, float) and math.isfinite(value):
            return self.world.numbers.exact(value)
        return tuple(map(self.plain, value)) if isinstance(value, tuple) else value

    def value(self, expr: t.Expr) -> Any:
        if isinstance(expr, t.Binary):
            return self.binary(expr)
        return self.call(expr) if isinstance(expr, t.Call) else super().value(expr)

    def binary(self, expr: t.Binary) -> Any:
        try:
            found = super().binary(expr)
        except Unexpressible:
            return self._compared(expr)
        # A quotient of whole numbers is the only float here that is not an exact number yet.
        if type(found) is float and math.isfinite(found):
            return self.world.numbers.exact(_small(found))
        return found

    def _compared(self, expr: t.Binary) -> Any:
        """An order of residues means nothing: what holds for the real numbers is kept. An open
        condition does not restrict an identity of polynomials, an equation does.
        """
        if expr.op in ("==", "in"):
            self.conditions.append(expr.span.flat)
        return self.real.value(expr)

    def call(self, expr: t.Call) -> Any:
        name = expr.function.text if isinstance(expr.function, t.Name) else ""
        found = super().call(expr)
        if name in self.questions:
            return self._freed(found, name)
        return found

    def pure(self, expr: t.Call, function: Any, args: list[Any], keywords: dict[str, Any]) -> Any:
        try:
            found = super().pure(expr, function, args, keywords)
            if not _invented(found, [*args, *keywords.values()]):
                return self._lifted(found)
            lifted = [self.world.lift(a) if isinstance(a, float) else a for a in args]
            return self._lifted(super().pure(expr, function, lifted, keywords))
        except FAILURES:
            found = self._really(expr)
        if isinstance(found, bool):
            self.conditions.append(expr.span.flat)
        return self._freed(found, expr.span.text)

    def _really(self, expr: t.Call) -> Any:
        """What the call gave at the site; computed again unless a `let` names it."""
        names = [word.text for word in self.expected.targets] if self.expected else []
        known = self.site.scope.names
        if self.expected is None or self.expected.value is not expr or not known.keys() >= {*names}:
            return self.real.value(expr)
        return known[names[0]] if len(names) == 1 else tuple(known[name] for name in names)

    def _lifted(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._lifted, value))
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return self.world.lift(value) if floating else value

    def _freed(self, value: Any, source: str) -> Any:
        if isinstance(value, tuple):
            return tuple(self._freed(item, source) for item in value)
        tensor = isinstance(value, Tensor) and value.is_floating_point()
        if not tensor and type(value) is not float:
            return value
        self.assumed[" ".join(source.split())] = None
        return self.world.variable(value.shape if tensor else (), free=True)


def _invented(found: Any, args: list[Any]) -> bool:
    """A float that a function computed from numbers, such as a root: it is rounded."""
    return isinstance(found, float) and not any(found == a for a in _numbers(args))


def _numbers(args: Any) -> list[Any]:
    if isinstance(args, (tuple, list)):
        return [number for arg in args for number in _numbers(arg)]
    return [args] if isinstance(args, (int, float)) else []


def _small(number: float) -> Any:
    return Fraction(number).limit_denominator(1 << 20)
