"""Features that count for nothing, planted into random models: what exact rules over dimensions
may remove.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from ...channels.analyse import analyse
from ...channels.classes import DimClass, classes
from ...channels.flow import Flow
from ...graph.index import GraphView
from ...ops.call import tensor_at
from ...ops.vocabulary import Vocabulary
from ..choices.source import ChoiceSource
from .models import Graph

IDLE = 0.4
"""The share of a dimension's features that are planted, about."""


def idled(graph: Graph, vocabulary: Vocabulary, source: ChoiceSource) -> Graph:
    """The model, in which weights read nothing of some features of most dimensions."""
    generator = torch.Generator().manual_seed(source.integer(0, 1 << 16))
    flow = analyse(GraphView(graph.module, vocabulary))
    for dim in classes(flow):
        if torch.rand((), generator=generator) < 0.8:
            chosen = torch.rand(dim.size, generator=generator) < IDLE
            gone = {leaf for leaf, idle in zip(dim.leaves, chosen.tolist(), strict=True) if idle}
            silence(flow, dim, ("reads",), gone)
    return graph


def silence(flow: Flow, dim: DimClass, roles: Collection[str], gone: Collection[int]) -> None:
    """Writes 0 into the parameters that have one of these roles, where they carry the leaves."""
    for path, axis in dim.places:
        if flow.roles.get((path, axis), "rides") in roles:
            tensor = tensor_at(flow.view.root, path).detach()
            for place in _positions(flow, path, axis, frozenset(gone)):
                tensor.select(axis, place).zero_()


def _positions(flow: Flow, path: str, axis: int, gone: frozenset[int]) -> Iterator[int]:
    for track in flow.params[flow.key(path)]:
        if track.shape[axis] > 1:
            for place, atom in enumerate(track.reshape(-1).tolist()):
                if atom and not gone.isdisjoint(flow.atoms.leaves(atom)):
                    yield place
