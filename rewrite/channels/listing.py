"""What a person asks about the dimensions of a model: where each stands, what one of its features
costs, and what keeps it from being cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

from torch import Tensor, fx, nn

from ..call import tensor_at
from .atoms import NONE, Block
from .classes import DimClass, classes
from .flow import Flow, Key, Place
from .tracks import axes_of

ROLES = ("writes", "rides", "reads")
"""In the order in which a feature comes by: made, passed on, summed over."""

COUNTED = ("conv", "linear")
"""Ops whose parameters the total counts, by the start of their names."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One axis of a parameter that carries a dimension. tied: other paths to the same memory."""

    path: str
    axis: int
    role: str
    tied: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a dimension must stay: the node, what it does, its module path and line of the model."""

    node: str
    does: str
    site: str
    source: str
    is_boundary: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """One dimension class. parameters: how many carry it. least, most: how many go with one of its
    features.
    """

    name: str
    size: int
    parameters: int
    least: int
    most: int
    seats: tuple[Seat, ...]
    reasons: tuple[Reason, ...]

    def of(self, role: str) -> list[Seat]:
        return [seat for seat in self.seats if seat.role == role]


@dataclass(frozen=True, slots=True)
class Listing:
    """Dimensions in the order of the model. The numbers are those of all of them, listed or not.

    total, free: how many there are, and can be cut. weights: parameters of convolutions and linear
    layers; cuttable: those of them that carry a dimension that can be cut.
    """

    dims: tuple[Listed, ...]
    total: int
    free: int
    weights: int
    cuttable: int


def listing(flow: Flow, at: str | None = None) -> Listing:
    """All dimension classes, or those with a parameter at the path or glob `at`."""
    found, counts = classes(flow), _Counts(flow)
    shown = (dim for dim in found if at is None or lies_at(dim, at))
    free = [dim for dim in found if not dim.blocks]
    keys = counts.weights()
    return Listing(
        tuple(_listed(flow, counts, dim) for dim in shown),
        len(found),
        len(free),
        sum(counts.tensors[key].numel() for key in keys),
        counts.carrying((leaf for dim in free for leaf in dim.leaves), keys),
    )


def lies_at(dim: DimClass, glob: str) -> bool:
    """Whether the class stands in a parameter at this path, or below it."""
    return any(fnmatchcase(path, g) for path, _ in dim.places for g in (glob, f"{glob}.*"))


def _listed(flow: Flow, counts: _Counts, dim: DimClass) -> Listed:
    one = [counts.carrying((leaf,), counts.seats[leaf]) for leaf in dim.leaves]
    return Listed(
        dim.name,
        dim.size,
        counts.carrying(dim.leaves, counts.seats[dim.leaves[0]]),
        min(one),
        max(one),
        tuple(_seat(flow, counts, place) for place in dim.places),
        tuple(reason_of(flow, block) for block in dim.blocks),
    )


def _seat(flow: Flow, counts: _Counts, place: Place) -> Seat:
    path, axis = place
    tied = tuple(other for other in counts.paths[flow.paths[path]] if other != path)
    return Seat(path, axis, flow.roles.get(place, "rides"), tied)


# -- reasons ---------------------------------------------------------------------------------------


def reason_of(flow: Flow, block: Block) -> Reason:
    """A block with its place in the user's model. It may name a parameter instead of a node."""
    node = next((n for n in flow.view.root.graph.nodes if n.name == block.node), None)
    if node is None and block.node in flow.paths:
        node = _reader(flow, block.node)
    site, source = _told(node)
    return Reason(block.node, block.reason, site, source, block.is_boundary)


def source_of(flow: Flow, dim: DimClass) -> str:
    """The line of the model that makes the dimension; empty if it was not recorded."""
    return _told(_reader(flow, dim.places[0][0]))[1]


def _reader(flow: Flow, path: str) -> fx.Node | None:
    """The first op that has a parameter."""
    return next((node for node, _ in flow.view.owners(path)), None)


def _told(node: fx.Node | None) -> tuple[str, str]:
    meta: Mapping[str, object] = {} if node is None else node.meta
    return str(meta.get("site") or ""), str(meta.get("source") or "")


# -- counting --------------------------------------------------------------------------------------


class _Counts:
    """How many numbers of each parameter carry which features. Tied parameters count once."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.paths: dict[Key, list[str]] = {}
        for path, key in flow.paths.items():
            self.paths.setdefault(key, []).append(path)
        root = flow.view.root
        self.tensors: dict[Key, Tensor] = {k: tensor_at(root, p[0]) for k, p in self.paths.items()}

    @cached_property
    def seats(self) -> dict[int, dict[Key, dict[int, set[int]]]]:
        """Leaf -> parameter -> axis -> positions."""
        found: dict[int, dict[Key, dict[int, set[int]]]] = {}
        for key in self.flow.params:
            for axis, place, leaf in self._positions(key):
                found.setdefault(leaf, {}).setdefault(key, {}).setdefault(axis, set()).add(place)
        return found

    def _positions(self, key: Key) -> Iterator[tuple[int, int, int]]:
        """(axis, position, leaf) of one parameter."""
        for track in self.flow.params[key]:
            for axis in axes_of(track):
                for place, atom in enumerate(track.reshape(-1).tolist()):
                    leaves = self.flow.atoms.leaves(atom) if atom != NONE else ()
                    yield from ((axis, place, leaf) for leaf in leaves)

    def carrying(self, leaves: Iterable[int], keys: Iterable[Key]) -> int:
        """How many numbers of these parameters stand at a position of one of the leaves."""
        wanted = tuple(leaves)
        return sum(self._carried(key, wanted) for key in keys)

    def _carried(self, key: Key, leaves: tuple[int, ...]) -> int:
        tensor = self.tensors[key]
        if not isinstance(tensor, nn.Parameter):
            return 0
        gone: list[set[int]] = [set() for _ in tensor.shape]
        for leaf in leaves:
            for axis, places in self.seats[leaf].get(key, {}).items():
                gone[axis] |= places
        left = prod(extent - len(lost) for extent, lost in zip(tensor.shape, gone, strict=True))
        return tensor.numel() - left

    def weights(self) -> list[Key]:
        """The parameters of convolutions and linear layers."""
        view = self.flow.view
        calls = (view.call(node) for node in view.root.graph.nodes)
        paths = [
            path
            for call in calls
            if call is not None and call.op.name.startswith(COUNTED)
            for path in call.params.values()
            if path is not None
        ]
        keys = dict.fromkeys(self.flow.key(path) for path in paths)
        return [key for key in keys if isinstance(self.tensors.get(key), nn.Parameter)]
