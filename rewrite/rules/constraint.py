"""What a rule says that a weight stays while it is trained: `train { y.weight := expr }`.

The numbers that the optimiser moves stand for the weight in `expr`; the model computes with what
that gives. So a mask is `y.weight * initial(mask(y.weight))`, and a grid is
`straight_through(y.weight, on_grid(y.weight))`. A constraint hangs at the node that reads the
weight; it holds of a weight that `expr` leaves as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.text.references import references
from ...grammar.tree import tree as t
from .scope import Scope, called_function

CONSTRAINTS = "constraints"
"""The key of `node.meta`: name of a weight to what holds of it, oldest first."""

INITIAL, IN_TRAINING = "initial", "in_training"
"""Forms of their own: a value as it is when training begins; one while it lasts, another after."""

ROUNDINGS = 8
"""Units in the last place by which a weight may be off what `expr` gives of it once more."""


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """What one rule says of one weight. `path` is the weight as the rule names it; `names` what
    else `value` reads, as plain values; start: the numbers that move first, where these are others
    than the weight: real ones behind signs, say. made: the weight as it was when this was said of
    it: a mask is the zeros that it had then, whatever zeros it has later.
    """

    rule: str
    path: str
    value: t.Expr
    names: Mapping[str, Any]
    functions: Mapping[str, Callable[..., Any]]
    start: Tensor | None = None
    made: Tensor | None = None

    def begin(self, weight: Tensor) -> Constrained:
        """Training begins from this weight."""
        names = {name: _like(value, weight) for name, value in self.names.items()}
        return Constrained(self, _Live(self, names, weight.detach()).begun())

    def apart(self, weight: Tensor) -> float:
        """How far `expr` moves a weight, in units in the last place of its numbers; 0 holds."""
        known = self.made is not None and self.made.shape == weight.shape
        return self.begin(_like(self.made, weight) if known else weight).apart(weight)

    def holds_of(self, weight: Tensor) -> bool:
        """Whether it leaves a weight as it is. It says nothing of codes, nor of a shape that it
        cannot be computed for.
        """
        try:
            return weight.is_floating_point() and self.apart(weight) <= ROUNDINGS
        except (LissomError, RuntimeError):
            return False

    def start_apart(self, weight: Tensor) -> float:
        """How far a weight is from what `start` gives, in the same units; 0 without a start."""
        if self.start is None:
            return 0.0
        with torch.no_grad():
            given = self.begin(weight)(_like(self.start, weight), training=False)
        return units_apart(given, weight)

    def numbers(self, weight: Tensor) -> Tensor:
        """What the optimiser moves first: `start`, while the weight is what that gives."""
        known = self.start is not None and self.start.shape == weight.shape
        if known and self.start_apart(weight) <= ROUNDINGS:
            return _like(self.start, weight)
        return weight.detach()


@dataclass(frozen=True, slots=True)
class Constrained:
    """A constraint of a weight in training."""

    constraint: Constraint
    live: _Live

    def __call__(self, numbers: Tensor, *, training: bool) -> Tensor:
        """What the model computes with; differentiable. Raises F103 for another shape."""
        self.live.weight, self.live.training = numbers, training
        value = self.live.number(self.constraint.value)
        if not isinstance(value, Tensor) or value.shape != numbers.shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            place = Label(self.constraint.value.span, f"this is {found}, not {list(numbers.shape)}")
            message = f"`{self.constraint.path}` would be trained in another shape"
            raise fail("F103", message, place)
        return value.to(numbers.dtype)

    @torch.no_grad()
    def apart(self, weight: Tensor) -> float:
        """How far it moves a weight once more, in units in the last place of its numbers."""
        return units_apart(self(weight.detach(), training=False), weight)


class _Live(Scope):
    """An expression about a weight whose numbers move. Tensors stay as they are: gradients flow."""

    def __init__(self, constraint: Constraint, names: Mapping[str, Any], weight: Tensor) -> None:
        super().__init__(names, constraint.functions, {}, None)
        self.constraint, self.weight, self.training = constraint, weight, True
        self.starts: dict[int, Any] = {}

    def begun(self) -> _Live:
        """With what is asked of the numbers as they are when training begins."""
        calls = (node for node in t.walk(self.constraint.value) if isinstance(node, t.Call))
        for call in calls:
            if _form(call) == INITIAL:
                with torch.no_grad():
                    self.starts[id(call)] = self.number(call.args[0])
        return self

    def name(self, expr: t.Name) -> Any:
        return self.weight if expr.text == self.constraint.path else super().name(expr)

    def attribute(self, expr: t.Attribute) -> Any:
        written = expr.span.text.replace(" ", "")
        return self.weight if written == self.constraint.path else super().attribute(expr)

    def plain(self, value: Any) -> Any:
        return value

    def call(self, expr: t.Call) -> Any:
        if _form(expr) == INITIAL:
            return self.starts[id(expr)]
        if _form(expr) == IN_TRAINING:
            return self.value(expr.args[0 if self.training else 1])
        return super().call(expr)

    def pure(
        self, expr: t.Call, function: Callable[..., Any], args: list[Any], keywords: dict[str, Any]
    ) -> Any:
        return called_function(expr, function, args, keywords)


def _form(expr: t.Call) -> str:
    return expr.function.text if isinstance(expr.function, t.Name) else ""


def _like(value: Any, weight: Tensor) -> Any:
    """Numbers of the rule, in the type and at the place of the weight."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(weight.device, weight.dtype)
    return value


def units_apart(one: Tensor, two: Tensor) -> float:
    """The largest difference of two tensors, relative to `two`, in units in the last place; zeros
    must be zeros.
    """
    if one.shape != two.shape:
        return float("inf")
    eps, two = torch.finfo(two.dtype).eps, two.detach()
    gap, size = (one.detach() - two).abs().double(), two.abs().double() * eps
    return float(torch.where(gap > 0, gap / size, 0.0).max()) if gap.numel() else 0.0


# -- at nodes --------------------------------------------------------------------------------------


def constraint_of(rule: str, assign: t.TrainAs, scope: Scope) -> Constraint:
    """A statement of `train` at one site."""
    path = ".".join(word.text for word in assign.path.parts)
    used = {name for name, _, called in references(assign.value) if not called}
    names = {name: scope.plain(scope.names[name]) for name in used if name in scope.names}
    plain = {name: value for name, value in names.items() if isinstance(value, _PLAIN)}
    start = None if assign.start is None else scope.number(assign.start)
    return Constraint(rule, path, assign.value, plain, scope.functions, start)


_PLAIN = (int, float, str, bool, tuple, Tensor, type(None))


def constraints_at(node: fx.Node) -> Mapping[str, tuple[Constraint, ...]]:
    """What holds of the weights that a node reads, by their names."""
    return node.meta.get(CONSTRAINTS, {})


def constrain(node: fx.Node, name: str, new: Sequence[Constraint]) -> None:
    """Hangs constraints of a weight at a node, each in the place of an older one of its rule.
    Copies of a graph share what lies in `meta`: it is replaced.
    """
    rules = {one.rule for one in new}
    older = (one for one in constraints_at(node).get(name, ()) if one.rule not in rules)
    node.meta[CONSTRAINTS] = {**constraints_at(node), name: (*older, *new)}


def renew(node: fx.Node, name: str, constraints: Sequence[Constraint]) -> None:
    """Hangs these at a node in place of all that held of a weight."""
    node.meta[CONSTRAINTS] = {**constraints_at(node), name: tuple(constraints)}


def free(graph: fx.Graph) -> None:
    """Nothing is said of any weight from now on."""
    for node in graph.nodes:
        node.meta.pop(CONSTRAINTS, None)
