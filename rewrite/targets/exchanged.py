"""A value of a model for which another is exchanged, and what becomes of it alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ..apply.planned import Plan
from ..apply.run import operand_value, run_plan
from ..measure.samples import Example


class Ops(nn.Module):
    """What a plan makes of one value alone."""

    def __init__(self, node: fx.Node, plan: Plan) -> None:
        super().__init__()
        self.node, self.plan = node, plan

    def forward(self, value: Any) -> Any:
        (new,) = self.plan.outputs.values()
        return operand_value(new, run_plan(self.plan, {self.node: value}, None))


class _Exchanging(fx.Interpreter):
    """Runs a graph and exchanges one value on its way."""

    def __init__(self, module: fx.GraphModule, ops: Ops) -> None:
        super().__init__(module)
        self.extra_traceback, self.ops = False, ops

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return self.ops(value) if n is self.ops.node else value


class Exchanged(nn.Module):
    """The model, all that reads one of its values seeing another."""

    def __init__(self, model: fx.GraphModule, ops: Ops) -> None:
        super().__init__()
        self.model, self.ops = model, ops

    def forward(self, *args: Any) -> Any:
        return _Exchanging(self.model, self.ops).run(*args)


SCALES = (1e-3, 1.0, 1e3, 1e6, 1e12, 1e30)
"""Of numbers that are drawn for ops alone: bounds that no data reaches show at some of them."""


def spread(node: fx.Node) -> list[Example]:
    """Numbers of several sizes and both signs in the shape of a value; none for whole numbers,
    which may be indices.
    """
    spec = node.meta["val"]
    if not spec.dtype.is_floating_point:
        return []
    generator = torch.Generator().manual_seed(0)
    most = torch.finfo(spec.dtype).max / 100
    found = []
    for scale in (scale for scale in SCALES if scale < most):
        drawn = scale * torch.randn(spec.shape, generator=generator, dtype=torch.float64)
        found.append(Example(f"numbers of about {scale:g}", (drawn.to(spec.dtype),)))
    return found
