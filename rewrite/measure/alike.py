"""Runs of models that begin like another one: they go on from where a run of that one was held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from ..graph.runs import interpret
from ..graph.values import leaves
from ..ops.call import module_at
from ..torch_internals import order_of
from .recording import APART, HeldRun, Stops


class _Front(fx.Interpreter):
    """Begins with the values in `known`; `stops` holds the run, if there are some."""

    def __init__(
        self, module: fx.GraphModule, known: dict[fx.Node, Any], stops: Stops | None = None
    ) -> None:
        super().__init__(module)
        self.known, self.stops = known, stops
        self.step, self.ran = max(1, len(module.graph.nodes) // APART), 0

    def run(self, *args: Any, **settings: Any) -> Any:
        return super().run(*args, initial_env=dict(self.known), **settings)

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "placeholder":
            self.ran += 1
            if self.stops is not None and self.ran % self.step == 0:
                live = {node: value for node, value in self.env.items() if value is not None}
                self.stops.take(HeldRun(order_of(n.prev), live))
        return super().run_node(n)


def held(module: fx.GraphModule, args: tuple[Any, ...], stops: Stops) -> list[Any]:
    """The leaves of what a graph returns for copies of `args`; `stops` holds the run, which begins
    where an earlier one stood. Raises RunFailed.
    """
    if stops.graph is not module.graph:
        stops.graph, stops.held = module.graph, []
    known = _known(list(module.graph.nodes), stops) or {}
    return _leaves(_Front(module, known, stops), args)


def _leaves(runner: _Front, args: tuple[Any, ...]) -> list[Any]:
    return [leaf for _, leaf in leaves(interpret(runner, args, "the data"))]


def resumed(
    module: fx.GraphModule, front: Sequence[fx.Node], args: tuple[Any, ...], stops: Stops
) -> list[Any] | None:
    """The same of another graph. front: its first nodes, which are those of the graph that `stops`
    held. None where no stop serves.
    """
    known = _known(front, stops)
    return None if known is None else _leaves(_Front(module, known), args)


def _known(front: Sequence[fx.Node], stops: Stops) -> dict[fx.Node, Any] | None:
    """What the first nodes give, as far as the last stop that holds all that others read."""
    nodes = list(stops.graph.nodes) if stops.graph is not None else []
    places = {order_of(node): place for place, node in enumerate(nodes, 1)}
    for stop in reversed(stops.held):
        count = places.get(stop.order, len(nodes))
        known = {new: stop.env.get(old) for old, new in zip(nodes[:count], front, strict=False)}
        if count <= len(front) and all(_is_enough(new, known) for new in known):
            return stops.values(known)
    return None


def _is_enough(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    return known[node] is not None or all(user in known for user in node.users)


def common_front(one: fx.GraphModule, other: fx.GraphModule) -> list[fx.Node]:
    """The first nodes of `other`, as far as they are those of `one`, so that they give the same."""
    same: dict[fx.Node, fx.Node] = {}
    for a, b in zip(one.graph.nodes, other.graph.nodes, strict=False):
        if a.op == "output" or not _is_same(one, other, a, b, same):
            break
        same[a] = b
    return list(same.values())


def _is_same(
    one: fx.GraphModule,
    other: fx.GraphModule,
    a: fx.Node,
    b: fx.Node,
    same: dict[fx.Node, fx.Node],
) -> bool:
    if a.op != b.op or a.target != b.target or len(a.all_input_nodes) != len(b.all_input_nodes):
        return False
    given = fx.node.map_arg((a.args, dict(a.kwargs)), same.__getitem__)
    return given == (b.args, dict(b.kwargs)) and _holds(one, a) is _holds(other, b)


def _holds(module: fx.GraphModule, node: fx.Node) -> Any:
    """What a node takes from its module."""
    path = str(node.target)
    if node.op == "call_module":
        return module_at(module, path)
    if node.op != "get_attr":
        return None
    place, _, name = path.rpartition(".")
    return getattr(module_at(module, place), name)
