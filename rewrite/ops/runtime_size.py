"""Sizes that the rewritten model computes at each call: `runtime_size(x, 0)` in a rule, and whole
numbers computed from such. They stand in settings and operands of planned ops until the commit
writes nodes for them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from ...grammar.checks.declared import COMPUTED
from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.tree import tree as t


@dataclass(frozen=True, eq=False, slots=True)
class RuntimeSize:
    """A whole number of the running model.

    args: a value of the graph and an axis, for `Tensor.size`; two numbers, for an operator. number:
    what it is on the example.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    number: int

    def __add__(self, other: Any) -> RuntimeSize:
        return _joined(operator.add, self, other)

    def __radd__(self, other: Any) -> RuntimeSize:
        return _joined(operator.add, other, self)

    def __sub__(self, other: Any) -> RuntimeSize:
        return _joined(operator.sub, self, other)

    def __rsub__(self, other: Any) -> RuntimeSize:
        return _joined(operator.sub, other, self)

    def __mul__(self, other: Any) -> RuntimeSize:
        return _joined(operator.mul, self, other)

    def __rmul__(self, other: Any) -> RuntimeSize:
        return _joined(operator.mul, other, self)

    def __floordiv__(self, other: Any) -> RuntimeSize:
        return _joined(operator.floordiv, self, other)

    def __mod__(self, other: Any) -> RuntimeSize:
        return _joined(operator.mod, self, other)

    def __eq__(self, other: object) -> bool:
        raise _unknown()

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: object) -> bool:
        raise _unknown()

    __gt__ = __le__ = __ge__ = __lt__

    def __bool__(self) -> bool:
        raise _unknown()

    @property
    def reads(self) -> tuple[Any, ...]:
        """The values whose sizes it is computed from."""
        if self.function is Tensor.size:
            return self.args[:1]
        return tuple(v for arg in self.args if isinstance(arg, RuntimeSize) for v in arg.reads)

    def run(self, env: Mapping[Any, Any]) -> int:
        """The number where the values hold what `env` says."""
        if self.function is Tensor.size:
            value, axis = self.args
            return env[value].shape[axis] if value in env else self.number
        return self.function(*(a.run(env) if isinstance(a, RuntimeSize) else a for a in self.args))

    def insert(
        self, graph: fx.Graph, nodes: Callable[[Any], fx.Node], done: Callable[[fx.Node], None]
    ) -> fx.Node:
        """Writes the nodes that compute it at the graph's insertion point. nodes: the node of a
        value that it reads; done: told of each new node.
        """
        if self.function is Tensor.size:
            node = graph.call_method("size", (nodes(self.args[0]), self.args[1]))
        else:
            args = (
                a.insert(graph, nodes, done) if isinstance(a, RuntimeSize) else a for a in self.args
            )
            node = graph.call_function(self.function, tuple(args))
        node.meta["val"] = self.number
        done(node)
        return node


def _unknown() -> LissomError:
    """A guard that asks for such a size is a mistake of the rule."""
    hint = "`size(x, axis)` is the size on the example"
    return fail("T001", "a size at run time is not known here, only when the model runs", help=hint)


def size_of(value: Any, axis: int, extent: int) -> RuntimeSize:
    """The size of a value along an axis, which is `extent` on the example."""
    return RuntimeSize(Tensor.size, (value, axis), extent)


def _joined(function: Callable[..., Any], left: Any, right: Any) -> RuntimeSize:
    """Raises TypeError for anything but whole numbers and sizes."""
    for value in (left, right):
        if not isinstance(value, (int, RuntimeSize)) or isinstance(value, bool):
            raise TypeError(f"a size at run time goes together with whole numbers, not {value!r}")
    return RuntimeSize(function, (left, right), function(known(left), known(right)))


def known(value: Any) -> Any:
    """The number on the example."""
    return value.number if isinstance(value, RuntimeSize) else value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A setting with every node and run-time size in it changed."""
    if isinstance(value, (fx.Node, RuntimeSize)):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if isinstance(value, slice):
        parts = (mapped(part, change) for part in (value.start, value.stop, value.step))
        return slice(*parts)
    return value


def settled(attrs: Mapping[str, Any], env: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings with the numbers that hold where the values of the graph are those of `env`."""

    def number(value: Any) -> Any:
        if isinstance(value, RuntimeSize):
            return value.run(env)
        return env[value] if value in env else value.meta.get("val")

    return {name: mapped(value, number) for name, value in attrs.items()}


def settable(op: str, traits: frozenset[str], keyword: t.Keyword, value: Any) -> Any:
    """A setting of an op to build. Raises T004 for a size at run time where the op takes numbers
    alone.
    """
    items = value if isinstance(value, tuple) else (value,)
    if COMPUTED & traits or not any(isinstance(item, RuntimeSize) for item in items):
        return value
    place = Label(keyword.span, "computed when the model runs")
    hint = "use an op that needs no size, such as `adaptive_avg_pool2d(x, output_size = 1)`"
    raise fail("T004", f"`{keyword.name}` of `{op}` must be a number", place, help=hint)


def read_by(attrs: Mapping[str, Any]) -> list[Any]:
    """The values and nodes that settings read."""
    found: list[Any] = []

    def note(value: Any) -> Any:
        found.extend(value.reads if isinstance(value, RuntimeSize) else (value,))
        return value

    for value in attrs.values():
        mapped(value, note)
    return found
