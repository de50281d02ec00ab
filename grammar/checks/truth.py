"""What a guard says for one instance of a rule: true, false, or not known without a model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..algebra.substitution import evaluate
from ..algebra.symbolic import Poly, const, product
from ..tree import tree as t
from .declared import BUFFERS
from .term import Term
from .terms import Terms

Sample = Mapping[str, float]
Value = float | bool | str | tuple[object, ...] | None
"""None means that nothing is known."""

_COMPARE: dict[str, Callable[..., bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_COMPUTE: dict[str, Callable[..., float]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "mod": operator.mod, "^": operator.pow,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs,
    "round_up": lambda x, multiple: -(-x // multiple) * multiple,
}  # fmt: skip
LIMIT = 1e12


@dataclass(slots=True)
class Truth:
    """Evaluates expressions under samples. Terms are resolved once for each expression."""

    terms: Terms
    cache: dict[int, object] = field(default_factory=dict)
    presence: dict[int, Poly | None] = field(default_factory=dict)

    def holds(self, expr: t.Expr, sample: Sample) -> bool | None:
        """Whether a condition holds, None if it depends on more than sizes and attributes."""
        try:
            found = self._condition(expr, sample)
        except (ArithmeticError, TypeError, ValueError):
            return None
        return found if isinstance(found, bool) else None

    def value(self, expr: t.Expr, sample: Sample) -> Value:
        if isinstance(expr, t.Binary):
            return self._binary(expr, sample)
        if isinstance(expr, t.Unary):
            return self._unary(expr, sample)
        if isinstance(expr, (t.Number, t.Frac)):
            return expr.value
        if isinstance(expr, t.Constant) and expr.value is not None:
            return expr.value
        known = self._known(expr)
        if known is not None:
            return _evaluated(known, sample)
        return self._call(expr, sample) if isinstance(expr, t.Call) else None

    def _condition(self, expr: t.Expr, sample: Sample) -> Value:
        """A weight alone asks whether it is there."""
        present = self._present(expr, sample)
        return self.value(expr, sample) if present is None else present

    def _present(self, expr: t.Expr, sample: Sample) -> bool | None:
        """Whether `c.bias` is there, None for all that is no weight of an op."""
        if isinstance(expr, t.Constant) and expr.value is None:
            return False
        if not isinstance(expr, t.Attribute):
            return None
        if id(expr) not in self.presence:
            found = self.terms.of(expr).presence
            self.presence[id(expr)] = None if found is None else self.terms.solver.resolve(found)
        known = self.presence[id(expr)]
        count = None if known is None else _evaluated(known, sample)
        return None if count is None else count != 0

    def _parameters(self, node: str, sample: Sample) -> Value:
        """The number of parameters of a matched or new op, None where a size is not known."""
        parts = self.terms.parts.items()
        held = [term for (owner, name), term in parts if owner == node and name not in BUFFERS]
        counts = [self._count(term, sample) for term in held if term.presence is not None]
        known = [count for count in counts if isinstance(count, (int, float))]
        return sum(known) if len(known) == len(counts) > 0 else None

    def _count(self, term: Term, sample: Sample) -> Value:
        """The elements of a weight that may be absent."""
        presence = const(1) if term.presence is None else term.presence
        if presence.is_zero:
            return 0
        axes = None if term.shape is None else self.terms.solver.shape(term.shape)
        if axes is None or not all(isinstance(axis, Poly) for axis in axes):
            return None
        size = product(axis for axis in axes if isinstance(axis, Poly)) * presence
        return _evaluated(self.terms.solver.resolve(size), sample)

    def _known(self, expr: t.Expr) -> object:
        key = id(expr)
        if key not in self.cache:
            self.cache[key] = self._resolved(self.terms.of(expr))
        return self.cache[key]

    def _resolved(self, term: Term) -> object:
        if term.number is not None:
            return self.terms.solver.resolve(term.number)
        if term.items is not None and all(item.number is not None for item in term.items):
            return tuple(self._resolved(item) for item in term.items)
        return None

    def _unary(self, expr: t.Unary, sample: Sample) -> Value:
        negated = expr.op == "not"
        inner = (self._condition if negated else self.value)(expr.operand, sample)
        if inner is None:
            return None
        return not inner if negated else -inner  # type: ignore[operator]

    def _binary(self, expr: t.Binary, sample: Sample) -> Value:
        if expr.op in ("and", "or"):
            return self._logic(expr, sample)
        left, right = self.value(expr.left, sample), self.value(expr.right, sample)
        if left is None or right is None or expr.op in ("in", "@"):
            return None
        if isinstance(left, tuple) or isinstance(right, tuple):
            return _pairs(expr.op, left, right)
        if expr.op in _COMPARE:
            return bool(_COMPARE[expr.op](left, right))
        if max(abs(left), abs(right)) > LIMIT or (expr.op == "^" and abs(right) > 64):  # type: ignore[arg-type]
            return None
        return _COMPUTE[expr.op](left, right)  # type: ignore[arg-type]

    def _logic(self, expr: t.Binary, sample: Sample) -> Value:
        left, right = self.value(expr.left, sample), self.value(expr.right, sample)
        decisive = expr.op == "or"
        for side in (left, right):
            if side is decisive:
                return decisive
        both = isinstance(left, bool) and isinstance(right, bool)
        return (not decisive) if both else None

    def _call(self, expr: t.Call, sample: Sample) -> Value:
        name = expr.function.text if isinstance(expr.function, t.Name) else ""
        if name == "known" and len(expr.args) == 1:
            return self._present(expr.args[0], sample)
        if name == "params" and len(expr.args) == 1:
            return self._parameters(expr.args[0].span.text, sample)
        if name not in _FUNCTIONS or expr.keywords:
            return None
        args = [self.value(arg, sample) for arg in expr.args]
        return None if None in args or not args else _FUNCTIONS[name](*args)


def _evaluated(known: object, sample: Sample) -> Value:
    if isinstance(known, tuple):
        return tuple(_evaluated(item, sample) for item in known)
    assert isinstance(known, Poly)
    try:
        return float_or_int(evaluate(known, sample))  # type: ignore[arg-type]
    except KeyError:
        return None


def float_or_int(number: object) -> float:
    return number if isinstance(number, (int, float)) else float(number)  # type: ignore[arg-type]


def _pairs(op: str, left: object, right: object) -> Value:
    """A pair equals a number if both elements do; pairs are computed element by element."""
    count = len(left) if isinstance(left, tuple) else len(right)  # type: ignore[arg-type]
    a = left if isinstance(left, tuple) else (left,) * count
    b = right if isinstance(right, tuple) else (right,) * count
    if len(a) != len(b) or None in a or None in b:
        return None
    if op == "!=":
        return a != b
    if op in _COMPARE:
        return all(_COMPARE[op](x, y) for x, y in zip(a, b, strict=True))
    return tuple(_COMPUTE[op](x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]
