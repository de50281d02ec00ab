"""What a guard says for one instance of a rule: true, false, or not known without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..algebra.substitution import evaluate
from ..algebra.symbolic import Poly, const, product
from ..tree import tree as t
from ..tree.fold import Fold
from ..tree.operators import ARITHMETIC, COMPARISONS, pairs
from .declared import BUFFERS
from .term import Term
from .terms import Terms

Sample = Mapping[str, float]
Value = float | bool | str | tuple[object, ...] | None
"""None means that nothing is known."""

_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min, "max": max, "abs": abs,
    "round_up": lambda x, multiple: -(-x // multiple) * multiple,
}  # fmt: skip
LIMIT = 1e12


@dataclass(slots=True)
class Truth(Fold[Value]):
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

    def literal(self, expr: t.Number | t.Frac | t.Constant | t.String, sample: Sample) -> Value:
        return None if isinstance(expr, t.String) else expr.value

    def other(self, expr: t.Expr, sample: Sample) -> Value:
        """The value of what is known as a size; each expression is resolved once."""
        key = id(expr)
        if key not in self.cache:
            self.cache[key] = self._resolved(self.terms.of(expr))
        known = self.cache[key]
        return None if known is None else _evaluated(known, sample)

    def _condition(self, expr: t.Expr, sample: Sample) -> Value:
        """A weight alone asks whether it is there."""
        present = self._present(expr, sample)
        return self.of(expr, sample) if present is None else present

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

    def _resolved(self, term: Term) -> object:
        if term.number is not None:
            return self.terms.solver.resolve(term.number)
        if term.items is not None and all(item.number is not None for item in term.items):
            return tuple(self._resolved(item) for item in term.items)
        return None

    def unary(self, expr: t.Unary, sample: Sample) -> Value:
        negated = expr.op == "not"
        inner = (self._condition if negated else self.of)(expr.operand, sample)
        if inner is None:
            return None
        return not inner if negated else -inner  # type: ignore[operator]

    def binary(self, expr: t.Binary, sample: Sample) -> Value:
        if expr.op in ("and", "or"):
            return self._logic(expr, sample)
        left, right = self.of(expr.left, sample), self.of(expr.right, sample)
        if left is None or right is None or expr.op in ("in", "@"):
            return None
        if isinstance(left, tuple) or isinstance(right, tuple):
            return _pairs(expr.op, left, right)
        if expr.op in COMPARISONS:
            return bool(COMPARISONS[expr.op](left, right))
        if max(abs(left), abs(right)) > LIMIT or (expr.op == "^" and abs(right) > 64):  # type: ignore[arg-type]
            return None
        return ARITHMETIC[expr.op](left, right)  # type: ignore[arg-type]

    def _logic(self, expr: t.Binary, sample: Sample) -> Value:
        left, right = self.of(expr.left, sample), self.of(expr.right, sample)
        decisive = expr.op == "or"
        for side in (left, right):
            if side is decisive:
                return decisive
        both = isinstance(left, bool) and isinstance(right, bool)
        return (not decisive) if both else None

    def call(self, expr: t.Call, sample: Sample) -> Value:
        known = self.other(expr, sample)
        return self._called(expr, sample) if known is None else known

    def _called(self, expr: t.Call, sample: Sample) -> Value:
        name = expr.function.text if isinstance(expr.function, t.Name) else ""
        if name == "known" and len(expr.args) == 1:
            return self._present(expr.args[0], sample)
        if name == "params" and len(expr.args) == 1:
            return self._parameters(expr.args[0].span.text, sample)
        if name not in _FUNCTIONS or expr.keywords:
            return None
        args = [self.of(arg, sample) for arg in expr.args]
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
    try:
        both = list(pairs(left, right))
    except ValueError:
        return None
    if any(None in pair for pair in both):
        return None
    if op == "!=":
        return any(x != y for x, y in both)
    if op in COMPARISONS:
        return all(COMPARISONS[op](x, y) for x, y in both)
    return tuple(ARITHMETIC[op](x, y) for x, y in both)
