"""Memory that a graph writes to: who makes it, who sees it, who writes."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import fx

from ...grammar.reached import reached
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
    near: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        parts = [other for other in (*may_share(node), *written(node)) if other in known]
        if parts or node in known:
            known.add(node)
            near.setdefault(node, []).extend(parts)
            for other in parts:
                near.setdefault(other, []).append(node)
    found: dict[fx.Node, Memory] = {}
    for node in near:
        if node not in found:
            memory = Memory(tuple(sorted(reached([node], near.__getitem__))))
            found |= dict.fromkeys(memory.nodes, memory)
    return found


def _targets(graph: fx.Graph) -> set[fx.Node]:
    """What something writes to, and what that is a view of; a parameter by all its nodes."""
    targets = [target for node in graph.nodes for target in written(node)]
    seen = set(reached(targets, may_share))
    held = {node.target for node in seen if node.op == "get_attr"}
    return seen | {n for n in graph.nodes if n.op == "get_attr" and n.target in held}
