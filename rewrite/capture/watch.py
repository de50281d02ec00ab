"""What the numbers behind a graph's decisions are while the graph runs on further examples."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import fx

from ...grammar.reached import reached
from ..graph.values import PathStep, path_text
from ..graph.writes import node_name
from ..ops.spec import TensorSpec, spec_of

_SIZES = ("size", "numel", "nelement", "len")


def is_size(node: fx.Node) -> bool:
    """Whether a node asks how large something is."""
    return node.op in ("call_function", "call_method") and node_name(node) in _SIZES


def is_given(node: fx.Node) -> bool:
    """Whether a node is an input of the model, or a part of one that is no tensor."""
    while node.target in (operator.getitem, getattr):
        node = node.all_input_nodes[0]
        if isinstance(node.meta["val"], TensorSpec):
            return False
    return node.op == "placeholder"


def text_of(node: fx.Node) -> str:
    """An input, or a part of one, as the model's forward names it."""
    if node.op == "placeholder":
        return str(node.target).lstrip("*")
    step = PathStep(node.args[1], node.target is getattr)
    return text_of(node.all_input_nodes[0]) + path_text((step,))


def roots(node: fx.Node) -> list[fx.Node]:
    """The sizes, and the inputs, that a number is computed from."""
    found = reached([node], lambda at: () if is_size(at) or is_given(at) else at.all_input_nodes)
    return [at for at in found if is_size(at) or is_given(at)]


def through_tensors(node: fx.Node) -> bool:
    """Whether a number follows from what a tensor holds that the graph itself makes."""
    if is_size(node) or is_given(node):
        return False
    made = isinstance(node.meta["val"], TensorSpec)
    return made or any(map(through_tensors, node.all_input_nodes))


class WatchedNodes:
    """Nodes in a graph that keep what others give; they are taken out again by `remove`."""

    def __init__(self, graph: fx.Graph, nodes: Iterable[fx.Node]) -> None:
        self.nodes = tuple(dict.fromkeys(nodes))
        self.seen: dict[fx.Node, Any] = {}
        self._graph, self._spies = graph, []

        def watched(index: int, value: Any) -> None:
            self.seen[self.nodes[index]] = spec_of(value)

        for index, node in enumerate(self.nodes):
            with graph.inserting_after(_last_placeholder(graph, node)):
                spy = graph.call_function(watched, (index, node))
            spy.meta.update(val=None, site="", source="", mutates=(), aliases=(), effect=True)
            self._spies.append(spy)

    def fresh(self) -> dict[fx.Node, Any]:
        """Forget what was seen; the returned values are filled by the next run."""
        self.seen = {}
        return self.seen

    def remove(self) -> None:
        for spy in self._spies:
            self._graph.erase_node(spy)
        self._spies = []


def _last_placeholder(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """`node`, or behind an input the last of them: all inputs stand at the start of a graph."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node
