"""Grown models in float64, where rounding hides next to nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ...ops.spec import TensorSpec
from .grown import Grown


def in_double(grown: Grown) -> Grown:
    """The model in float64, converted in place."""
    grown.module.double()
    widen(grown.module.graph)
    wide = tuple(x.double() if x.is_floating_point() else x for x in grown.inputs)
    return replace(grown, inputs=wide)


def widen(graph: fx.Graph) -> None:
    """Every floating-point value of the graph is known as float64 from now on."""
    for node in graph.nodes:
        node.meta["val"] = fx.node.map_aggregate(node.meta.get("val"), _wide)


def _wide(spec: Any) -> Any:
    narrow = isinstance(spec, TensorSpec) and spec.dtype.is_floating_point
    return TensorSpec(spec.shape, torch.float64) if narrow else spec
