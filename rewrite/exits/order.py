"""What runs in front of a node beside what it reads: checks of sizes, and what writes to memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from ..graph.exits import exits_of
from ..graph.index import GraphView
from ..graph.memory import memory_of, mutations
from ..graph.writes import is_pure, written
from ..torch_internals import order_of

Order = Mapping[str, Sequence[str]]
"""Names of nodes, and of those that run in front of each though it does not read them."""


def effects_of(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that run though nobody may read what they give."""
    plain = (n for n in module.graph.nodes if n.op not in ("placeholder", "output"))
    return [node for node in plain if not is_pure(node, module)]


def order_in(module: fx.GraphModule) -> Order:
    """In front of each exit, and of the end, all effects that stand there; in front of what writes
    to memory, who reads that memory before.
    """
    effects, output = effects_of(module), next(iter(reversed(module.graph.nodes)))
    found: dict[str, tuple[str, ...]] = {}
    for stop in (*(one.node for one in exits_of(module.graph)), output):
        found[stop.name] = tuple(n.name for n in effects if order_of(n) < order_of(stop))
    view = GraphView(module)
    for writer in mutations(module):
        found[writer.name] = tuple(node.name for node in _read_before(view, writer))
    return {name: names for name, names in found.items() if names}


def _read_before(view: GraphView, writer: fx.Node) -> Iterator[fx.Node]:
    own = set().union(*(memory_of(view, value) for value in written(writer, view.root)))
    for node in view.root.graph.nodes:
        if node is writer:
            return
        if any(own & memory_of(view, value) for value in node.all_input_nodes):
            yield node
