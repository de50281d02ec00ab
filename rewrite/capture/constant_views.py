"""Weights that forward reads as views of a parameter: a transpose, rows of a stacked matrix, a gain
of channels with axes of one.

A view may become a parameter of its own only if nothing is lost: nobody else reads the memory, and
no two views have a number in common. Else the tie would be broken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from ..graph.ties import storage_key


def separable(
    module: nn.Module, weights: Collection[fx.Node], values: Mapping[fx.Node, Any]
) -> set[fx.Node]:
    """Those of the nodes `weights` that may have memory of their own.

    `values` are the constant nodes of the graph of `module` and what they hold.
    """
    by_memory: dict[tuple[str, int], list[fx.Node]] = {}
    for node, value in values.items():
        for tensor in _tensors(value):
            by_memory.setdefault(storage_key(tensor), []).append(node)
    elsewhere = _read_elsewhere(module, values)
    found: set[fx.Node] = set()
    for address, nodes in by_memory.items():
        views = [node for node in nodes if node in weights]
        outside = [node for node in nodes if any(user not in values for user in node.users)]
        alone = address not in elsewhere and all(node in views for node in outside)
        if views and alone and _apart([values[view] for view in views]):
            found.update(views)
    return found


def _tensors(value: Any) -> list[torch.Tensor]:
    """A constant, or the first of several that one call gave (`chunk`)."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    return [item for item in items if isinstance(item, torch.Tensor) and item.numel()][:1]


def _read_elsewhere(module: nn.Module, values: Mapping[fx.Node, Any]) -> set[tuple[str, int]]:
    """Memory that layers, and attributes that are no constants here, read."""
    graph: Any = module.graph
    found: set[tuple[str, int]] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            found.update(storage_key(t) for t in (*layer.parameters(), *layer.buffers()))
        elif node.op == "get_attr" and node not in values:
            owner, _, name = str(node.target).rpartition(".")
            held = getattr(module.get_submodule(owner), name)
            found.update(map(storage_key, _tensors(held)))
    return found


def _apart(views: list[torch.Tensor]) -> bool:
    """Whether each view fills its memory in some order of its axes, and none reaches into another.

    Only such a view keeps its strides, and with them its bits, when it is copied.
    """
    if any(view.clone().stride() != view.stride() for view in views):
        return False
    spans = sorted((view.data_ptr(), view.numel() * view.element_size()) for view in views)
    ends = [start + size for start, size in spans]
    return all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))
