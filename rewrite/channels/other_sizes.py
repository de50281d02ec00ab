"""Features at other sizes than those of the example.

A movement may write a size as a number: `x.reshape(1, 6, -1)` joins the images of a larger batch
with their channels. What belongs together at any of the sizes that the model takes has to stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.index import GraphView
from ..graph.runs import Recorder, RunFailed, interpret
from ..graph.snapshot import snapshot
from ..measure.samples import Example
from ..ops.spec import spec_of
from ..torch_internals import tree_map
from .analyse import analyse
from .flow import Flow
from .labels import Labels, axes_of, keep_all
from .movement import alike, run_on_labels
from .units import KeepReason


def analyse_at(view: GraphView, others: Sequence[Example]) -> Flow:
    """The features of a captured graph, whose nodes carry the specs of their values: those that
    hold at the sizes of `others` too. Raises as `analyse` does.
    """
    flow = analyse(view)
    if flow.sized_moves:
        for example in others:
            seen = _seen_on(view, example)
            odd = _laid_out_otherwise(flow, seen)
            if odd is not None:
                why = f"it lays features out in another way on {example.label}"
                _agree(flow, analyse(seen), KeepReason(odd.name, why))
    return flow


def _laid_out_otherwise(flow: Flow, seen: GraphView) -> fx.Node | None:
    """The first movement that does."""
    twins = dict(zip(flow.view.root.graph.nodes, seen.root.graph.nodes, strict=True))
    for move in flow.sized_moves:
        call = seen.call(twins[move.node])
        if call is None or not alike(move.parts, run_on_labels(call, move.track)):
            return move.node
    return None


def _seen_on(view: GraphView, example: Example) -> GraphView:
    """A copy of the graph whose nodes carry the specs of another example."""
    module = snapshot(view.root)
    try:
        interpret(_MetaSpecs(module), tree_map(_on_meta, example.args), example.label)
    except RunFailed:  # something asks for numbers
        interpret(_Specs(module), example.args, example.label)
    return GraphView(module, view.vocabulary)


class _Specs(Recorder):
    """Runs a graph and lets its nodes carry what they give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, module.graph.nodes)

    def keep(self, node: fx.Node, value: Any) -> None:
        node.meta["val"] = self.kept[node] = spec_of(value)


class _MetaSpecs(_Specs):
    """The same without computing anything."""

    def run(self, *args: Any, **settings: Any) -> Any:
        with torch.device("meta"):
            return super().run(*args, **settings)

    def fetch_attr(self, target: str) -> Any:
        return tree_map(_on_meta, super().fetch_attr(target))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(target)
        state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        state = {name: _on_meta(value) for name, value in state.items()}
        return torch.func.functional_call(layer, state, args, kwargs)


def _on_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


# -- what both say ---------------------------------------------------------------------------------


def _agree(flow: Flow, other: Flow, why: KeepReason) -> None:
    """What stands together only there, or must stay there, stays."""
    same: dict[int, set[int]] = defaultdict(set)
    for key, tracks in flow.params.items():
        theirs = other.params.get(key, ())
        if list(map(axes_of, tracks)) != list(map(axes_of, theirs)):
            keep_all(flow.atoms, tracks, why)
            continue
        for mine, twin in _pairs(tracks, theirs):
            here, there = flow.atoms.leaves(mine), other.atoms.leaves(twin)
            if len(here) != len(there):
                flow.atoms.block(here, why)
                continue
            for a, b in zip(here, there, strict=True):
                same[b].add(a)
    for leaf, leaves in same.items():
        blocked = other.atoms.blocked(leaf)
        if blocked is not None:
            flow.atoms.block(leaves, blocked)
        elif len(leaves) > 1:
            flow.atoms.block(leaves, why)


def _pairs(mine: Labels, theirs: Labels) -> list[list[int]]:
    """Each pair of atoms at one position, once."""
    both = [torch.stack([a.reshape(-1), b.reshape(-1)]) for a, b in zip(mine, theirs, strict=True)]
    return torch.cat(both, 1).unique(dim=1).T.tolist() if both else []
