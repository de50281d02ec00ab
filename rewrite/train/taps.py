"""Values inside of a graph, beside what it returns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from ...grammar.diagnostics import Label, fail
from ..graph.places import nodes_at
from ..graph.snapshot import finish, snapshot
from ..ops.spec import TensorSpec


def tapped(graph: fx.GraphModule, places: Sequence[str]) -> fx.GraphModule:
    """The same graph, sharing all weights; it returns `(outputs, values)`, a value for each place:
    the last one that the ops there give. Raises U008 for a place that the model does not have.
    """
    copied = snapshot(graph)
    output = next(node for node in reversed(copied.graph.nodes) if node.op == "output")
    values = tuple(_last(copied, place) for place in places)
    output.args = ((output.args[0], values),)
    finish(copied)
    return copied


def _last(graph: fx.GraphModule, place: str) -> fx.Node:
    found = nodes_at(graph.graph.nodes, place)
    ordered = [node for node in graph.graph.nodes if node in found and _is_numbers(node)]
    if not ordered:
        raise fail("U008", f"nothing at `{place}` gives numbers", Label(None, where=place))
    return ordered[-1]


def _is_numbers(node: fx.Node) -> bool:
    spec = node.meta.get("val")
    known = isinstance(spec, (TensorSpec, Tensor))
    return node.op != "get_attr" and known and spec.dtype.is_floating_point  # type: ignore[union-attr]
