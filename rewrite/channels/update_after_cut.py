"""What is known of a model, carried over to what a cut made of it, without a second analysis."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from ..graph.index import GraphView
from ..ops.call import tensor_at
from ..torch_internals import is_erased
from .cut import cutting
from .cut_builder import Work
from .flow import Flow
from .labels import Labels, Vectors, along, joined, keep_all
from .movement import Region, constant
from .selection import selected
from .sizes import specs_of
from .units import KeepReason, Units


def cut_and_carry(flow: Flow, removed: Iterable[int]) -> Flow:
    """The features of the model without these leaves; `view.root` is that model. Raises as `cut`
    does.
    """
    work = cutting(flow, removed)
    new = Flow(GraphView(work.module, flow.view.vocabulary), flow.atoms.copy())
    left = {node: work.new[node] for node in flow.values if not is_erased(work.new[node])}
    for node in work.module.graph.nodes:
        new.values[node] = [()]
    for old, node in left.items():
        results = range(len(flow.values[old]))
        new.values[node] = [_left(work, new.atoms, old, index) for index in results]
    for path, key in flow.paths.items():
        tracks, rank = flow.params.get(key, ()), tensor_at(flow.view.root, path).ndim
        new.params.setdefault(new.key(path), _selected(work, new.atoms, tracks, rank))
    new.roles = dict(flow.roles)
    new.contracted = {left[node]: None for node in flow.contracted}
    new.statistics = {left[node]: None for node in flow.statistics}
    new.recurrent = {left[node]: names for node, names in flow.recurrent.items()}
    new.sized = {
        left[node]: {name: _vectors(work, new.atoms, vectors) for name, vectors in named.items()}
        for node, named in flow.sized.items()
    }
    for old, node in left.items():
        region = _region(work, old)
        if region is not None:
            new.regions[node] = region
    return new


def _left(work: Work, atoms: Units, node: fx.Node, result: int) -> Labels:
    specs, tracks = specs_of(node), work.flow.values[node][result]
    spec = specs[result] if result < len(specs) else None
    return tracks if spec is None else _selected(work, atoms, tracks, len(spec.shape))


def _selected(work: Work, atoms: Units, tracks: Labels, rank: int) -> Labels:
    """The tracks at the positions that stay. A feature that stands alone has no track, so it has to
    stay: without it nothing would be left there.
    """
    axes = work.kept.axes(tracks, rank)
    found = []
    for track in tracks:
        own = {axis: kept for axis, kept in axes.items() if track.shape[axis] > 1}
        part = selected(track, own)
        if part.numel() > 1:
            found.append(part)
        else:
            keep_all(atoms, (part,), KeepReason("the cut", "one feature is left of it"))
    return tuple(found)


def _vectors(work: Work, atoms: Units, vectors: Vectors) -> Vectors:
    return along(_selected(work, atoms, joined([vectors]), 1), 0)


def _region(work: Work, node: fx.Node) -> Region | None:
    """The same choice of positions, among those that are left."""
    new, old = work.new[node], work.flow.regions.get(node)
    if new.target is torch.index_select:
        source, axis, index = new.args
        order = constant(work.module, index)
        return None if order is None else Region(source, axis, order, ())  # type: ignore[arg-type]
    if old is None:
        return None
    inside = tuple(work.new[other] for other in old.inside)
    return Region(work.new[old.source], old.axis, old.order, inside)
