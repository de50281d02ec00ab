"""Numbers that a graph computes from sizes, after a cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from .cut_builder import Work
from .sizes import specs_of


def renumbered(work: Work, node: fx.Node) -> bool:
    """What a node that gives no tensor gives now, and whether that is another number."""
    found, known = _evaluated(work, node), work.now(node)
    if found != known:
        work.numbers[node] = found
    return bool(found != known)


def _evaluated(work: Work, node: fx.Node) -> Any:
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and any(specs_of(source)):
        return _asked(work, node, source)
    if node.op != "call_function" or not any(n in work.numbers for n in node.all_input_nodes):
        return node.meta.get("val")
    target: Any = node.target
    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), work.now)  # type: ignore[misc]
    return target(*args, **kwargs)


def _asked(work: Work, node: fx.Node, source: fx.Node) -> Any:
    """A question about a tensor: only its shape may have another answer than before."""
    shape = torch.Size(work.shape(source))
    if node.op == "call_method" and node.target == "size":
        dims = [*node.args[1:], *node.kwargs.values()]
        return shape[dims[0]] if dims else shape  # type: ignore[index]
    if node.target is getattr and node.args[1] == "shape":
        return shape
    return node.meta.get("val")


def old_numbers(work: Work, node: fx.Node) -> None:
    """Numbers that are no sizes here stay what they were."""
    was = {work.new[n]: n.meta["val"] for n in node.all_input_nodes if n in work.numbers}
    new = work.new[node]
    work.rewritten.add(node)
    new.args, new.kwargs = fx.node.map_aggregate(  # type: ignore[assignment]
        (new.args, new.kwargs), lambda value: _constant(was, value)
    )


def _constant(was: Mapping[fx.Node, Any], value: Any) -> Any:
    return was.get(value, value) if isinstance(value, fx.Node) else value
