"""Nodes that no rule can see, and what they cost: a total that leaves them out is a lower bound."""

from __future__ import annotations

import math
import operator

from torch import Tensor, fx, nn

from ..journal import Opaque
from ..ops.call import module_at, tensor_at
from ..ops.spec import TensorSpec
from .index import GraphView

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
"""Layers with as many weights as a setting says, so that no declaration lists them all. Each of
their matrices multiplies one vector a step."""


def opaque_costs(module: fx.GraphModule, view: GraphView) -> tuple[Opaque, ...]:
    """The nodes that are no op and hold parameters, or may be an op that multiplies. Parameters
    that several of them read count with the first.
    """
    known: set[int] = set()
    nodes = (node for node in module.graph.nodes if is_uncertain(module, view, node))
    return tuple(_told(module, view, node, known) for node in nodes)


def is_uncertain(module: fx.GraphModule, view: GraphView, node: fx.Node) -> bool:
    """Whether a node is no op and holds parameters, or may be an op that multiplies."""
    hidden = node.op.startswith("call_") and view.why_opaque(node)
    return bool(hidden and (_multiplies(view, node) or _weights(module, node)))


def _multiplies(view: GraphView, node: fx.Node) -> bool:
    """Whether it is spelled as an op that multiplies and accumulates."""
    return any("macs" in view.vocabulary[name]._costs for name in view.may_be(node))


def _told(module: fx.GraphModule, view: GraphView, node: fx.Node, known: set[int]) -> Opaque:
    fresh = {id(weight): weight for weight in _weights(module, node) if id(weight) not in known}
    known.update(fresh)
    return Opaque(
        str(node.meta.get("site") or node.name),
        str(node.meta.get("source") or ""),
        view.why_opaque(node),
        sum(weight.numel() for weight in fresh.values()),
        _macs(module, node),
        tuple(str(value.meta.get("val")) for value in node.all_input_nodes),
    )


def _weights(module: fx.GraphModule, node: fx.Node) -> list[Tensor]:
    """The parameters of a layer, and those that a node reads by name."""
    if node.op == "call_module":
        return list(module_at(module, str(node.target)).parameters())
    named = (value for value in node.all_input_nodes if value.op == "get_attr")
    found = (tensor_at(module, str(value.target)) for value in named)
    return [tensor for tensor in found if isinstance(tensor, nn.Parameter)]


def _macs(module: fx.GraphModule, node: fx.Node) -> int | None:
    """Multiply-accumulates at the recorded shapes; None where nobody knows. What takes parts out of
    a table multiplies nothing.
    """
    if node.target is operator.getitem:
        return 0
    layer = module_at(module, str(node.target)) if node.op == "call_module" else None
    spec = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    if layer is None or type(layer) not in RECURRENT or not isinstance(spec, TensorSpec):
        return None
    matrices = [weight.numel() for weight in layer.parameters() if weight.dim() == 2]
    return math.prod(spec.shape[:-1]) * sum(matrices)
