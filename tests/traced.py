"""Tracing one spelling of an op and looking at what the view makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from lissom.rewrite.graph.index import OpCall
from lissom.rewrite.graph.runs import watched
from lissom.rewrite.ops.spec import spec_of


class Held(nn.Module):
    """A function of inputs and of the parameters it is given."""

    def __init__(self, function: Callable[..., Any], *tensors: torch.Tensor | None) -> None:
        super().__init__()
        self.function = function
        for i, tensor in enumerate(tensors):
            self.register_parameter(f"p{i}", None if tensor is None else nn.Parameter(tensor))
        self.count = len(tensors)

    def forward(self, x: Any) -> Any:
        return self.function(x, *(getattr(self, f"p{i}") for i in range(self.count)))


ARITY = {
    1: lambda f: lambda x: f(x),
    2: lambda f: lambda x, y: f(x, y),
    3: lambda f: lambda x, y, z: f(x, y, z),
}


def described(root: fx.GraphModule, *inputs: Any) -> Any:
    """What a graph returns; its nodes know from now on what they give."""
    return watched(root, inputs, lambda node, value: node.meta.update(val=spec_of(value)))


def traced(spelling: Any, inputs: tuple[Any, ...]) -> tuple[fx.GraphModule, fx.Node, Any]:
    """The graph of a spelling, the node of the op, and what it computes."""
    leaf = isinstance(spelling, nn.Module) and not isinstance(spelling, (Held, nn.Sequential))
    bare = spelling if isinstance(spelling, nn.Module) else ARITY[len(inputs)](spelling)
    root = fx.symbolic_trace(nn.Sequential(spelling) if leaf else bare)
    torch.manual_seed(0)
    result = described(root, *(i.clone() if isinstance(i, torch.Tensor) else i for i in inputs))
    output = next(node for node in root.graph.nodes if node.op == "output")
    return root, output.args[0], result


def canonical(call: OpCall) -> tuple[Any, ...]:
    shapes = {name: spec and spec.shape for name, spec in call.param_specs().items()}
    operands = [v if isinstance(v, (int, float)) else type(v).__name__ for v in call.inputs]
    return call.op.name, operands, shapes, call.attrs
