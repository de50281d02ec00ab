"""What a rule looks for where a model has no candidate for it: its ops, how many of each there are,
and the opaque nodes that they may hide in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from ..graph.index import GraphView
from ..ops.spec import TensorSpec
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..torch_internals import tree_leaves


@dataclass(frozen=True, slots=True)
class Hidden:
    """A node that no rule can see: its place in the model, and why it is opaque."""

    site: str
    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.site} ({self.source})" if self.source else self.site


@dataclass(frozen=True, slots=True)
class Sought:
    """One line of a pattern: the ops that it looks for, how many the graph has, and the opaque
    nodes whose function, method or layer is a spelling of one of them.
    """

    ops: tuple[str, ...]
    count: int
    hidden: tuple[Hidden, ...]


def sought(state: State, rule: CompiledRule) -> tuple[Sought, ...]:
    """One entry for each line of the pattern that must match, in textual order; the same ops are
    told once.
    """
    lines = [op.ops for op in rule.pattern.anchors() if op.ops is not None]
    opaque = list(opaque_nodes(state))
    return tuple(_sought(state.view, tuple(sorted(ops)), opaque) for ops in dict.fromkeys(lines))


def _sought(view: GraphView, ops: tuple[str, ...], opaque: list[fx.Node]) -> Sought:
    hidden = (node for node in opaque if not set(ops).isdisjoint(view.may_be(node)))
    return Sought(ops, sum(len(view.calls_of(name)) for name in ops), _told(view, hidden))


def unknown(state: State) -> tuple[Hidden, ...]:
    """The nodes that are a spelling of no op at all: each may compute what any op computes."""
    nodes = (node for node in opaque_nodes(state) if not state.view.may_be(node))
    return _told(state.view, nodes)


def opaque_nodes(state: State) -> Iterator[fx.Node]:
    """The nodes that compute tensors, yet are no op, in graph order."""
    for node in state.module.graph.nodes:
        computes = node.op.startswith("call_") and _gives_tensor(node)
        if computes and state.view.projection(node) is None and state.view.why_opaque(node):
            yield node


def _gives_tensor(node: fx.Node) -> bool:
    """Whether a tensor is in what it gives; where that is not recorded, it may be."""
    if "val" not in node.meta:
        return True
    return any(isinstance(leaf, TensorSpec) for leaf in tree_leaves(node.meta["val"]))


def _told(view: GraphView, nodes: Iterable[fx.Node]) -> tuple[Hidden, ...]:
    return tuple(
        Hidden(
            str(node.meta.get("site") or node.name),
            str(node.meta.get("source") or ""),
            view.why_opaque(node),
        )
        for node in nodes
    )
