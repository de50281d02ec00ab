"""Which nodes and parameters a feature reaches: all that a cut of it has to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, fx

from ..graph.building import assertions
from .flow import Flow, Key
from .units import NONE


class Reach:
    """The nodes that give, read or hold atoms, and the parameters that carry them. paths: those of
    each parameter. checks: nodes that are no part of what the model computes.
    """

    def __init__(self, flow: Flow) -> None:
        self.nodes = list(flow.view.root.graph.nodes)
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.checks = assertions(flow.view.root.graph)
        tracks = ([] if n in self.checks else list(_tracks(flow, n)) for n in self.nodes)
        self._of_nodes = _Groups(len(flow.atoms), tracks)
        self.paths: dict[Key, list[str]] = {}
        for path, key in flow.paths.items():
            self.paths.setdefault(key, []).append(path)
        self._keys = list(self.paths)
        carried = (flow.params.get(key, ()) for key in self._keys)
        self._of_keys = _Groups(len(flow.atoms), carried)

    def nodes_of(self, lost: Tensor) -> list[int]:
        """The places in the graph of the nodes that some of these atoms reach, bool [atoms]."""
        return self._of_nodes.of(lost)

    def keys_of(self, lost: Tensor) -> list[Key]:
        """The parameters that carry some of these atoms."""
        return [self._keys[place] for place in self._of_keys.of(lost)]


def _tracks(flow: Flow, node: fx.Node) -> Iterator[Tensor]:
    yield from _given(flow, node)
    for value in node.all_input_nodes:
        yield from _given(flow, value)
    call = flow.view.call(node)
    for path in call.params.values() if call is not None else ():
        if path is not None:
            yield from flow.params.get(flow.key(path), ())
    for vectors in flow.sized.get(node, {}).values():
        yield from vectors
    region = flow.regions.get(node)
    if region is not None:
        yield from flow.of(region.source)


def _given(flow: Flow, node: fx.Node) -> Iterator[Tensor]:
    if node.op == "get_attr":
        yield from flow.params.get(flow.key(str(node.target)), ())
    for tracks in flow.values.get(node, ()):
        yield from tracks


class _Groups:
    """Which groups of tracks have an atom: `places[starts[atom]:ends[atom]]`."""

    def __init__(self, count: int, groups: Iterable[Sequence[Tensor]]) -> None:
        atoms, places = [torch.zeros(0).long()], [torch.zeros(0).long()]
        for place, tracks in enumerate(groups):
            if tracks:
                own = torch.cat([track.reshape(-1) for track in tracks]).unique()
                atoms.append(own)
                places.append(torch.full_like(own, place))
        every, order = torch.cat(atoms).sort(stable=True)
        self.places = torch.cat(places)[order]
        self.counts = every.bincount(minlength=count)
        self.counts[NONE] = 0
        self.starts = torch.searchsorted(every, torch.arange(count))

    def of(self, lost: Tensor) -> list[int]:
        """Those that have one of these atoms, bool [atoms], in ascending order."""
        starts, counts = self.starts[lost], self.counts[lost]
        first = (starts - counts.cumsum(0) + counts).repeat_interleave(counts)
        return self.places[first + torch.arange(len(first))].unique().tolist()
