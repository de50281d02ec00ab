"""Memory that a graph writes to: who makes it, who sees it, who writes."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from torch import fx

from ..graph.writes import may_share, written


@dataclass(frozen=True, eq=False)
class Memory:
    """One piece of memory that something writes to.

    nodes: those whose value may be a part of it, and those that write to it, in graph order.
    """

    nodes: tuple[fx.Node, ...]

    @property
    def is_own(self) -> bool:
        """Whether the graph makes it: neither a caller nor the model can hold any of it."""
        return all(node.op in ("call_function", "call_method") for node in self.nodes)

    def is_seen_before_it_is_written(self, constants: Container[fx.Node]) -> bool:
        """Whether something that is not constant reads it while it is not yet what it becomes."""
        last = max(node for node in self.nodes if written(node))
        readers = (user for node in self.nodes for user in node.users if user not in constants)
        return any(user < last for user in readers)

    def is_unseen(self) -> bool:
        """Whether nothing but what writes to it reads it."""
        own = set(self.nodes)
        return all(user in own for node in self.nodes for user in node.users)


def written_memory(graph: fx.Graph) -> dict[fx.Node, Memory]:
    """The memory that each node is a part of or writes to, for nodes of which that can be said."""
    known = _targets(graph)
    groups = _Groups()
    for node in graph.nodes:
        parts = [other for other in (*may_share(node), *written(node)) if other in known]
        if parts or node in known:
            known.add(node)
            groups.join(node, parts)
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in known:
            found.setdefault(groups.first(node), []).append(node)
    memories = (Memory(tuple(nodes)) for nodes in found.values())
    return {node: memory for memory in memories for node in memory.nodes}


def _targets(graph: fx.Graph) -> set[fx.Node]:
    """What something writes to, and what that is a view of; a parameter by all its nodes."""
    todo = [target for node in graph.nodes for target in written(node)]
    seen: set[fx.Node] = set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += may_share(node)
    held = {node.target for node in seen if node.op == "get_attr"}
    return seen | {n for n in graph.nodes if n.op == "get_attr" and n.target in held}


class _Groups:
    """Nodes that belong together."""

    def __init__(self) -> None:
        self._above: dict[fx.Node, fx.Node] = {}

    def first(self, node: fx.Node) -> fx.Node:
        """The node that stands for all that belong to this one."""
        above = self._above
        while node in above:
            if above[node] in above:
                above[node] = above[above[node]]
            node = above[node]
        return node

    def join(self, node: fx.Node, others: Iterable[fx.Node]) -> None:
        for other in others:
            one, two = self.first(node), self.first(other)
            if one is not two:
                self._above[one] = two
