"""Which nodes write to memory that others can see. Nothing is moved across them, and they are never
dead code. What one node does to memory: `writes.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from torch import fx

from ...grammar.reached import reached
from ..torch_internals import order_of
from .index import GraphView
from .writes import may_share, writes, written


def mutations(module: fx.GraphModule) -> list[fx.Node]:
    """All mutating nodes, in graph order."""
    return [node for node in module.graph.nodes if writes(node, module)]


def after(nodes: Sequence[fx.Node], first: fx.Node) -> Sequence[fx.Node]:
    """Those of the mutating nodes that run after `first`."""
    return nodes[bisect_right(nodes, order_of(first), key=order_of) :]


def memory_of(view: GraphView, value: fx.Node) -> set[fx.Node]:
    """The values whose memory `value` may be: itself and what it is a view of."""
    return set(reached([value], lambda node: may_share(node, view.call(node))))


def mutation_between(
    view: GraphView, nodes: Sequence[fx.Node], inside: Sequence[fx.Node]
) -> fx.Node | None:
    """A mutating node that runs between the first and the last of `inside` (in graph order), is
    none of them, and writes to memory that one of them reads or gives.
    """
    if not nodes or not inside:
        return None
    near = {*inside, *(value for node in inside for value in node.all_input_nodes)}
    touched: set[fx.Node] | None = None
    for node in after(nodes, inside[0]):
        if order_of(node) >= order_of(inside[-1]):
            return None
        if node in inside:
            continue
        touched = touched or set().union(*(memory_of(view, value) for value in near))
        if any(memory_of(view, value) & touched for value in written(node, view.root)):
            return node
    return None


def parted(view: GraphView, nodes: Sequence[fx.Node], old: fx.Node) -> fx.Node | None:
    """An in-place op behind `old` that is seen through another value: both are one memory because
    it lies as it does, and may be two if `old` lay otherwise, for ops hand on the format they get.
    """
    for write in after(nodes, old):
        for target in written(write, view.root):
            own = [n for n in memory_of(view, target) if order_of(n) >= order_of(old)]
            if any(_read_beside(view, value, target, write) for value in own):
                return write
    return None


def _read_beside(view: GraphView, value: fx.Node, target: fx.Node, write: fx.Node) -> bool:
    """Whether what shares the memory of a value before a write to `target` is read behind it."""
    at = order_of(write)
    same = reached([value], lambda node: [n for n in node.users if node in _shared(view, n)])
    beside = (node for node in same if node is not target and order_of(node) < at)
    return any(order_of(user) > at for node in beside for user in node.users)


def _shared(view: GraphView, node: fx.Node) -> Sequence[fx.Node]:
    return tuple(may_share(node, view.call(node)))


def seen_through(
    view: GraphView, nodes: Sequence[fx.Node], old: fx.Node, new: Iterable[fx.Node]
) -> fx.Node | None:
    """A later in-place op that would be seen if `old` became memory of `new`: it writes to one."""
    later = after(nodes, old)
    if not later:
        return None
    own = set().union(*(memory_of(view, node) for node in new))
    writes = (
        (node, memory_of(view, value)) for node in later for value in written(node, view.root)
    )
    return next((node for node, memory in writes if old in memory or memory & own), None)
