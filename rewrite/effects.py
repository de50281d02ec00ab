"""Which nodes write to memory that others can see. Nothing is moved across them, and they are never dead code."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from torch import fx, nn

_IN_PLACE = frozenset(
    {operator.setitem, operator.delitem}
    | {getattr(operator, name) for name in dir(operator) if name.startswith("i") and hasattr(operator, name[1:])}
)


def mutates(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether running the node changes a tensor that existed before."""
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__iadd__", "__imul__")
    if node.op == "call_module":
        return bool(getattr(_submodule(module, str(node.target)), "inplace", False))
    if node.op != "call_function":
        return False
    named = getattr(node.target, "__name__", "")
    inplace_name = named.endswith("_") and not named.endswith("__")
    return node.target in _IN_PLACE or inplace_name or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _submodule(module: fx.GraphModule, path: str) -> nn.Module:
    return module.get_submodule(path)


def mutations(module: fx.GraphModule) -> list[fx.Node]:
    """All mutating nodes, in graph order."""
    return [node for node in module.graph.nodes if mutates(node, module)]


def mutation_between(nodes: Sequence[fx.Node], first: fx.Node, last: fx.Node) -> fx.Node | None:
    """A mutating node strictly between two nodes of the graph, if there is one."""
    if not nodes:
        return None
    index = bisect_right(nodes, first._sort_key, key=lambda node: node._sort_key)
    return next((node for node in nodes[index:] if node._sort_key < last._sort_key), None) if index < len(nodes) else None


def pure_nodes(module: fx.GraphModule, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Those of `nodes` that may be removed when nothing reads them."""
    keep = ("placeholder", "output")
    return [node for node in nodes if node.op not in keep and not node.users and not mutates(node, module)]
