"""Which nodes and parameters a feature reaches: all that a cut of it has to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx

from ..graph.building import assertions
from .flow import Flow, Key
from .incidence import Incidence
from .labels import OncePerVector


class Reach:
    """The nodes that give, read or hold atoms, and the parameters that carry them. paths: those of
    each parameter. checks: nodes that are no part of what the model computes.
    """

    def __init__(self, flow: Flow) -> None:
        self.nodes = list(flow.view.root.graph.nodes)
        self.place = {node: place for place, node in enumerate(self.nodes)}
        self.checks = assertions(flow.view.root.graph)
        self.paths: dict[Key, list[str]] = {}
        for path, key in flow.paths.items():
            self.paths.setdefault(key, []).append(path)
        self._keys = list(self.paths)
        self._vectors: list[Tensor] = []
        number = OncePerVector(self._numbered)
        self._nodes_of = self._readers(
            number, ([] if n in self.checks else _tracks(flow, n) for n in self.nodes)
        )
        self._keys_of = self._readers(number, (flow.params.get(key, ()) for key in self._keys))
        self._of_atoms = Incidence.of_lists(self._vectors, len(flow.atoms))

    def _numbered(self, vector: Tensor) -> int:
        self._vectors.append(vector.unique())
        return len(self._vectors) - 1

    def _readers(
        self, number: OncePerVector[int], groups: Iterable[Iterable[Tensor]]
    ) -> dict[int, list[int]]:
        """The groups that each vector is in."""
        found: dict[int, list[int]] = {}
        for place, tracks in enumerate(groups):
            for vector in {number.of(track.reshape(-1)) for track in tracks}:
                found.setdefault(vector, []).append(place)
        return found

    def nodes_of(self, lost: Tensor) -> list[int]:
        """The places in the graph of the nodes that some of these atoms reach, in its order."""
        return self._those(self._nodes_of, lost)

    def keys_of(self, lost: Tensor) -> list[Key]:
        """The parameters that carry some of these atoms."""
        return [self._keys[place] for place in self._those(self._keys_of, lost)]

    def beside(self, lost: Tensor) -> Tensor:
        """All atoms of the axes of parameters that some of these atoms are on, int64."""
        vectors = self._of_atoms.of(lost).unique().tolist()
        return torch.cat([self._vectors[v] for v in vectors if v in self._keys_of] or [lost])

    def _those(self, readers: Mapping[int, list[int]], lost: Tensor) -> list[int]:
        vectors = self._of_atoms.of(lost).unique().tolist()
        return sorted({place for vector in vectors for place in readers.get(vector, ())})


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
