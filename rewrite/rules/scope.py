"""Evaluates the expressions of a rule at one site.

Weights enter arithmetic as float64 copies: rules compute in double precision and the builder rounds
once. Functions that compute numbers get plain tensors; questions about the graph (`owned`, `mode`,
`macs` ...) get the references themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.tree import tree as t
from ...grammar.tree.fold import Fold
from ...grammar.tree.operators import ARITHMETIC, COMPARISONS, pairs
from ..measure.observing import key, watched_at
from ..ops.call import OpCall, tensor_at
from ..torch_internals import version_of
from .facts import Facts
from .no_value import NoValue, uncomputed

SYMBOLS = frozenset(
    ("eval", "train", "all", "model", "before", "after", "outputs", "channels", "saving")
    + ("sensitivity", "original")
)
"""Words with a meaning of their own; they evaluate to themselves."""


@dataclass(frozen=True, slots=True)
class ParamRef:
    """A parameter of a matched op: `c.weight`."""

    call: OpCall
    name: str
    path: str
    tensor: Tensor = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


class Scope(Fold[Any]):
    """What names mean at one site.

    `questions` are engine functions called as `f(scope, *args)`; `functions` compute numbers and
    see plain tensors. `read` collects the parameters whose numbers were used: what the rule bakes
    into new weights. `state` is the engine's (only questions look at it), `facts` what has been
    measured at this site: costs before and after, errors. `doubles` are the float64 copies. `asked`
    names the questions so far, and what they were about: `macs`, `model`.
    """

    def __init__(
        self,
        names: Mapping[str, Any],
        functions: Mapping[str, Callable[..., Any]],
        questions: Mapping[str, Callable[..., Any]],
        state: Any,
    ) -> None:
        self.names = dict(names)
        self.functions = functions
        self.questions = questions
        self.state = state
        self.facts = Facts()
        self.read: dict[str, ParamRef] = {}
        self.asked: set[str] = set()
        self.doubles: dict[str, Tensor] = {}

    def child(self, names: Mapping[str, Any]) -> Scope:
        """A scope that sees more names and shares everything else."""
        scope = Scope({**self.names, **names}, self.functions, self.questions, self.state)
        scope.read, scope.facts, scope.doubles = self.read, self.facts, self.doubles
        scope.asked = self.asked
        return scope

    # -- names and references ----------------------------------------------------------------------

    def param(self, call: OpCall, name: str) -> ParamRef | None:
        """The parameter `name` of a matched op, or None where the op has none."""
        path = call.params[name]
        return None if path is None else ParamRef(call, name, path, tensor_at(call.root, path))

    def plain(self, value: Any) -> Any:
        """`value` with references to weights replaced by float64 tensors."""
        if isinstance(value, ParamRef):
            self.read[value.path] = value
            if value.path not in self.doubles:
                self.doubles[value.path] = double(value.tensor)
            return self.doubles[value.path]
        if isinstance(value, fx.Node) and value.op == "get_attr":
            return double(tensor_at(self.state.module, str(value.target)))
        if isinstance(value, tuple):
            return tuple(self.plain(item) for item in value)
        return value

    def replaces(self, weight: ParamRef) -> None:
        """The numbers of `weight` are about to be replaced. Its float64 copy is seldom read again,
        and is made anew where it is.
        """
        self.read[weight.path] = weight
        self.doubles.pop(weight.path, None)

    # -- expressions -------------------------------------------------------------------------------

    def number(self, expr: t.Expr) -> Any:
        """The plain value of `expr`."""
        return self.plain(self.value(expr))

    def value(self, expr: t.Expr) -> Any:
        """The value of `expr`; references stay references."""
        try:
            return self.of(expr)
        except LissomError:
            raise
        except (
            ArithmeticError,
            ValueError,
            TypeError,
            RuntimeError,
            LookupError,
            AttributeError,
        ) as error:
            raise NoValue(uncomputed(expr.span, str(error))) from error

    def literal(self, expr: t.Number | t.Frac | t.String | t.Constant) -> Any:
        return expr.value

    def items(self, expr: t.Tuple | t.List) -> Any:
        found = [self.value(item) for item in expr.items]
        return tuple(found) if isinstance(expr, t.Tuple) else found

    def name(self, expr: t.Name) -> Any:
        if expr.text in self.names:
            return self.names[expr.text]
        if expr.text in SYMBOLS:
            return expr.text
        raise fail("N001", f"`{expr.text}` is not bound here", Label(expr.span))

    def attribute(self, expr: t.Attribute) -> Any:
        value = self.value(expr.value)
        if expr.name.isdigit():
            return value[int(expr.name)]
        if isinstance(value, OpCall):
            return self.of_call(value, expr)
        if isinstance(value, fx.Node):
            return seen_of(value, expr.name, of_op=False)
        if expr.name == "shape" and isinstance(value, (ParamRef, Tensor)):
            return tuple(value.shape)
        if expr.name in self.state.attached:  # no observer watches a number
            return None
        raise fail("T003", f"`{expr.value.span.text}` has no `{expr.name}`", Label(expr.span))

    def of_call(self, call: OpCall, expr: t.Attribute) -> Any:
        if expr.name in call.params:
            return self.param(call, expr.name)
        if expr.name in call.attrs:
            return call.attrs[expr.name]
        if expr.name in self.state.attached:
            return seen_of(call.node, expr.name, of_op=True)
        raise fail("T003", f"op `{call.op.name}` has no `{expr.name}`", Label(expr.span))

    def binary(self, expr: t.Binary) -> Any:
        if expr.op in ("and", "or"):
            return self._logic(expr)
        left, right = self.number(expr.left), self.number(expr.right)
        return _broadcast(_OPERATORS[expr.op], left, right, all_of=expr.op in (*COMPARISONS, "in"))

    def _logic(self, expr: t.Binary) -> Any:
        left = self.value(expr.left)
        holds = left is not None if isinstance(left, (ParamRef, Tensor)) else bool(left)
        return self.value(expr.right) if holds == (expr.op == "and") else left

    def unary(self, expr: t.Unary) -> Any:
        value = self.number(expr.operand)
        return not value if expr.op == "not" else -value

    def call(self, expr: t.Call) -> Any:
        if not isinstance(expr.function, t.Name):
            raise fail("T001", "only a function can be called", Label(expr.function.span))
        name = expr.function.text
        args = [self.value(arg) for arg in expr.args]
        keywords = {k.name.text: self.value(k.value) for k in expr.keywords}
        if name in self.questions:
            self.asked.update((name, *(arg for arg in args if isinstance(arg, str))))
            return self.questions[name](self, *args, **keywords)
        if name not in self.functions:
            raise fail("N001", f"no function `{name}`", Label(expr.function.span))
        return self.pure(expr, self.functions[name], args, keywords)

    def pure(
        self, expr: t.Call, function: Callable[..., Any], args: list[Any], keywords: dict[str, Any]
    ) -> Any:
        """Calls a numeric function; one that writes to its arguments breaks its declaration."""
        plain = [self.plain(arg) for arg in args]
        named = {key: self.plain(value) for key, value in keywords.items()}
        tensors = [value for value in (*plain, *named.values()) if isinstance(value, Tensor)]
        versions = [version_of(tensor) for tensor in tensors]
        with torch.no_grad():
            result = called_function(expr, function, plain, named)
        if versions != [version_of(tensor) for tensor in tensors]:
            raise fail(
                "G001", "the function changed its arguments; it must be pure", Label(expr.span)
            )
        return result

    def subscript(self, expr: t.Subscript) -> Any:
        value = self.number(expr.value)
        items = tuple(self._item(item) for item in expr.items)
        return value[items[0] if len(items) == 1 else items]

    def _item(self, item: t.Expr | t.Slice) -> Any:
        if isinstance(item, t.Slice):
            return slice(*(part and self.number(part) for part in (item.start, item.stop)))
        return self.number(item)

    def quantifier(self, expr: t.Quantifier) -> bool:
        every = expr.kind == "forall"
        for item in self.value(expr.domain):
            if bool(self.child({expr.variable.text: item}).number(expr.body)) != every:
                return not every
        return every

    def interpolate(self, text: str, parse: Callable[[str], t.Expr]) -> str:
        """`text` with every `{expr}` replaced by its value at this site."""
        out, rest = [], text
        while "{" in rest and "}" in rest[rest.index("{") :]:
            start = rest.index("{")
            stop = rest.index("}", start)
            out += [rest[:start], shown(self._try(rest[start + 1 : stop], parse))]
            rest = rest[stop + 1 :]
        return "".join([*out, rest])

    def _try(self, text: str, parse: Callable[[str], t.Expr]) -> Any:
        """The value of a message's expression; a message must never be the reason of a failure."""
        try:
            return self.value(parse(text))
        except LissomError:
            return "{" + text + "}"


def seen_of(node: fx.Node, name: str, of_op: bool) -> Any:
    """What an observer saw, that hangs at a value or an op under a name; None where there
    is none, and where no data reached it.
    """
    watched = watched_at(node).get(key(name, of_op))
    return None if watched is None else watched.seen


class NoNumber(Exception):
    """Raised by what stands in for numbers: no mistake of the function that met it."""


def called_function(
    expr: t.Call, function: Callable[..., Any], args: list[Any], keywords: dict[str, Any]
) -> Any:
    """Functions are the caller's own and may raise anything: the rule's author must see where."""
    try:
        return function(*args, **keywords)
    except (LissomError, MemoryError, NoNumber):
        raise
    except torch.linalg.LinAlgError as error:  # these numbers are the reason, not the function
        raise fail("K001", f"`{expr.span.text}`: {error}", Label(expr.span)) from error
    except Exception as error:
        raise LissomError(uncomputed(expr.span, f"{type(error).__name__}: {error}")) from error


def read_weight(keyword: t.Keyword, value: Any) -> Any:
    """What a rule gives as a weight: numbers, or None. Raises T001 for what holds no array.

    `(a.bias or 0) + (b.bias or 0)` of two absent biases is the number 0: an absent bias.
    """
    if isinstance(value, (int, float)) and value == 0:
        return None
    dense = not isinstance(value, Tensor) or value.layout is torch.strided
    if dense and (value is None or isinstance(value, (ParamRef, Tensor, int, float))):
        return value
    found = f"this is a {type(value).__name__}" if dense else f"this is {value.layout}"
    name = keyword.name
    raise fail("T001", f"`{name}` must be an array of numbers", Label(keyword.span, found))


def double(tensor: Tensor) -> Tensor:
    """A copy for arithmetic, float64 where floating. Always a copy: weights in float64 must not be
    written to either.
    """
    detached = tensor.detach()
    return detached.to(torch.float64 if detached.is_floating_point() else detached.dtype, copy=True)


def shown(value: Any) -> str:
    """A value as messages print it."""
    if isinstance(value, OpCall):
        return str(value.node.meta.get("site") or value.node.name)
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, ParamRef):
        return value.path
    if isinstance(value, float):
        return str(value) if isinstance(value, t.Share) else f"{value:.4g}"
    return ", ".join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)


def _broadcast(function: Callable[[Any, Any], Any], left: Any, right: Any, *, all_of: bool) -> Any:
    """Applies an operator; pairs such as strides work element by element, and comparisons ask for
    all elements.
    """
    if function is operator.ne:
        return not _broadcast(_equal, left, right, all_of=True)
    if (
        isinstance(left, tuple)
        and isinstance(right, tuple)
        and len(left) != len(right)
        and function is _equal
    ):
        return False
    if isinstance(left, tuple) or isinstance(right, tuple):
        parts = tuple(function(a, b) for a, b in pairs(left, right))
        return all(parts) if all_of else parts
    result = function(left, right)
    return bool(result.all()) if all_of and isinstance(result, Tensor) else result


def _equal(left: Any, right: Any) -> Any:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return left is right if left is None or right is None else left == right


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    **ARITHMETIC,
    **COMPARISONS,
    "@": operator.matmul,
    "==": _equal,
    "in": lambda a, b: a in b,
}
