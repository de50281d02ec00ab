"""Which features the axes of every value and parameter carry.

One walk through the graph, in its order. Ops that compute with weights make features and sum over
them (`contraction`), ops that move numbers move features (`movement`), elementwise ops couple what
they bring together. Everything else is a barrier: what reaches it must stay, and it says so.
"""

from __future__ import annotations

from torch import fx

from ..graph.building import assertions
from ..graph.index import GraphView
from ..ops.call import OpCall
from . import contraction, einsum, movement
from .declared import axis_exprs, name_of
from .flow import Flow
from .labels import along, joined, keep_all, together
from .sizes import shape_at, specs_of
from .units import KeepReason

_PLAIN = frozenset({"linear_in_x", "linear_in_weight", "pooling"})
"""Traits of ops that leave axes alone unless their declared dimensions say otherwise."""

SIZES = frozenset(
    {"size", "dim", "numel", "ndimension", "nelement", "stride", "is_contiguous"}
    | {"new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"}
)
"""Methods that ask about a tensor, not about its numbers: its sizes, its dtype."""


def analyse(view: GraphView) -> Flow:
    """The features of a captured graph, whose nodes carry the specs of their values. Raises T008
    where this torch hides an op that the graph has, or may have.
    """
    flow, checks = Flow(view), assertions(view.root.graph)
    for node in view.root.graph.nodes:
        if node in checks:
            flow.values[node] = [()]
        else:
            _visit(flow, node)
    return flow


def _visit(flow: Flow, node: fx.Node) -> None:
    flow.values[node] = [() for _ in specs_of(node)] or [()]
    if node.op in ("placeholder", "get_attr"):
        return
    if node.op == "output":
        flow.block_inputs(node, "the model returns it")
        return
    part = flow.view.projection(node)
    if part is not None:
        source, index = part
        if len(flow.values[node]) == 1:
            flow.set(node, flow.values[source][index])
        return
    call = flow.view.call(node)
    if call is not None or any(specs_of(node)):
        flow.view.require_read(node)
    if call is None:
        _opaque(flow, node)
    else:
        _op(flow, call)


def _opaque(flow: Flow, node: fx.Node) -> None:
    asks = node.op == "call_method" and node.target in SIZES
    asks = asks or (node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device"))
    if not asks:
        flow.block_inputs(node, flow.view.why_opaque(node))


def _op(flow: Flow, call: OpCall) -> None:
    traits = call.op.traits
    own = next((trait for trait in _BY_TRAIT if trait in traits), None)
    if own is not None:
        _BY_TRAIT[own](flow, call)
    elif "elementwise" in traits and not call.op.params:
        _elementwise(flow, call)
    elif call.op.mixes is not None or call.op.sums or traits & _PLAIN:
        contraction.contracted(flow, call)
    else:
        flow.block_inputs(call.node, f"what {call.op.name} does along its axes is not declared")


def _resized(flow: Flow, call: OpCall) -> None:
    """Along the axes that the header of the op does not name."""
    spec, rank = call.op.inputs[0].shape, len(shape_at(call.inputs[0]))
    if call.op.outputs[0] is not None:
        contraction.contracted(flow, call)
        return
    tracks = flow.separate(call.inputs[0])
    axes = [along(tracks, axis) for axis in range(rank)]
    why = KeepReason(call.node.name, "it is resized along this axis")
    for axis, expr in enumerate(axis_exprs(spec, rank) if spec is not None else [""] * rank):
        if name_of(expr) is None or isinstance(expr, str):
            keep_all(flow.atoms, axes[axis], why)
            axes[axis] = ()
    flow.set(call.node, joined(axes))


def _elementwise(flow: Flow, call: OpCall) -> None:
    inputs = [v for v in call.inputs if isinstance(v, fx.Node) and shape_at(v)]
    shapes = [shape_at(value) for value in inputs]
    rank = max((len(shape) for shape in shapes), default=0)
    tracks = [flow.separate(value) for value in inputs]
    why = KeepReason(call.node.name, f"{call.op.name} brings it together with what has no features")
    axes = []
    for axis in range(rank):
        present = []
        for own, shape in zip(tracks, shapes, strict=True):
            at = axis - rank + len(shape)
            if at >= 0 and shape[at] > 1:
                present.append(along(own, at))
        axes.append(together(flow.atoms, present, why))
    flow.set(call.node, *[joined(axes)] * max(1, call.op.results))


_BY_TRAIT = {
    "equation": einsum.summed,
    "selection": movement.chosen,
    "gated": movement.gated,
    "pads": movement.padded,
    "resize": _resized,
    "movement": movement.moved,
    "reduction": movement.reduced,
    "per_channel": contraction.sloped,
}
"""What an op does to features, by the first of these traits that it has. Of the others the header
tells, with `mixes` and `sums`.
"""
