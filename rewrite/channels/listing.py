"""What a person asks about the dimensions of a model: where each stands, what one of its features
costs, and what keeps it from being cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from ...grammar.diagnostics import Label, did_you_mean, fail
from ..graph.opaque import opaque_costs
from ..graph.places import lies_at
from ..journal import Opaque
from ..ops.call import tensor_at
from .classes import DimClass, Role, classes
from .flow import Flow, Key
from .labels import axes_of
from .units import NONE, KeepReason

ROLES = ("writes", "rides", "reads")
"""In the order in which a feature comes by: made, passed on, summed over."""

COUNTED = frozenset({"linear_in_x", "linear_in_weight"})
"""Ops whose parameters the total counts, by their traits: layers that multiply."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """One axis of a parameter that carries a dimension.

    factor: where the axis is a product (of heads and their widths, say), which of its factors, from
    0. tied: other paths to the same memory.
    """

    path: str
    axis: int
    factor: int
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
    axes: tuple[Carrier, ...]
    reasons: tuple[Reason, ...]

    def of(self, role: str) -> list[Carrier]:
        return [axis for axis in self.axes if axis.role == role]


@dataclass(frozen=True, slots=True)
class Listing:
    """Dimensions in the order of the model. The numbers are those of all of them, listed or not.

    total, free: how many there are, and can be cut. weights: parameters of convolutions and linear
    layers; cuttable: those of them that carry a dimension that can be cut. opaque: ops that no rule
    can see.
    """

    dims: tuple[Listed, ...]
    total: int
    free: int
    weights: int
    cuttable: int
    opaque: tuple[Opaque, ...]


def listing(flow: Flow, at: str | None = None) -> Listing:
    """All dimension classes, or those with a parameter at the path or glob `at`. Raises U008 if
    there is none.
    """
    found, counts = classes(flow), _Counts(flow)
    shown = found if at is None else dims_at(found, at)
    free = [dim for dim in found if not dim.blocks]
    keys = counts.weights()
    return Listing(
        tuple(_listed(flow, counts, dim) for dim in shown),
        len(found),
        len(free),
        sum(counts.tensors[key].numel() for key in keys),
        counts.carrying([leaf for dim in free for leaf in dim.leaves], keys)[0],
        opaque_costs(flow.view.root, flow.view),
    )


def dims_at(dims: Sequence[DimClass], at: str) -> list[DimClass]:
    """Those with a parameter at this path or glob, or below it. Raises U008 if there is none."""
    found = [dim for dim in dims if any(lies_at(path, at) for path, _ in dim.places)]
    if not found:
        known = dict.fromkeys(
            name for d in dims for path, _ in d.places for name in (path.rpartition(".")[0], path)
        )
        hint = next(
            iter(did_you_mean(at, known)), f"there are {', '.join(d.name for d in dims[:12])}"
        )
        place = Label(None, where=at)
        raise fail("U008", f"no dimension of the model stands at `{at}`", place, help=hint)
    return found


def _listed(flow: Flow, counts: _Counts, dim: DimClass) -> Listed:
    keys = dict.fromkeys(flow.paths[path] for path, _ in dim.places)
    number, each = counts.carrying(dim.leaves, keys)
    return Listed(
        dim.name,
        dim.size,
        number,
        int(each.min()),
        int(each.max()),
        tuple(_carrier(flow, counts, role) for role in dim.roles),
        tuple(reason_of(flow, block) for block in dim.blocks),
    )


def _carrier(flow: Flow, counts: _Counts, role: Role) -> Carrier:
    (path, axis), factor = role
    tied = tuple(other for other in counts.paths[flow.paths[path]] if other != path)
    return Carrier(path, axis, factor, flow.roles.get((path, axis), "rides"), tied)


# -- reasons ---------------------------------------------------------------------------------------


def reason_of(flow: Flow, block: KeepReason) -> Reason:
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
        self.known: dict[int, tuple[int, ...]] = {}

    @cached_property
    def positions(self) -> dict[tuple[Key, int], Tensor]:
        """For each axis of a parameter the pairs (position, leaf), int64 [2, pairs]."""
        found: dict[tuple[Key, int], dict[tuple[int, int], None]] = {}
        for key, tracks in self.flow.params.items():
            for track in tracks:
                for axis in axes_of(track):
                    found.setdefault((key, axis), {}).update(self._pairs(track))
        return {place: torch.tensor(list(pairs)).T for place, pairs in found.items() if pairs}

    def _pairs(self, track: Tensor) -> dict[tuple[int, int], None]:
        atoms = enumerate(track.reshape(-1).tolist())
        return {(place, leaf): None for place, atom in atoms for leaf in self._leaves(atom)}

    def _leaves(self, atom: int) -> tuple[int, ...]:
        if atom not in self.known:
            self.known[atom] = self.flow.atoms.leaves(atom) if atom != NONE else ()
        return self.known[atom]

    def carrying(self, leaves: Sequence[int], keys: Iterable[Key]) -> tuple[int, Tensor]:
        """How many numbers of these parameters stand at a position of one of the leaves, and of
        each of them, int64 [leaves].
        """
        index = torch.full((len(self.flow.atoms),), -1)
        index[list(leaves)] = torch.arange(len(leaves))
        total, each = 0, torch.zeros(len(leaves), dtype=torch.int64)
        for key in keys:
            if isinstance(self.tensors[key], nn.Parameter):
                number, own = self._carried(key, index, len(leaves))
                total, each = total + number, each + own
        return total, each

    def _carried(self, key: Key, index: Tensor, count: int) -> tuple[int, Tensor]:
        shape = self.tensors[key].shape
        left, left_each = 1, torch.ones(count, dtype=torch.int64)
        for axis, extent in enumerate(shape):
            places, leaves = self.positions.get((key, axis), torch.zeros(2, 0).long())
            own = index[leaves] >= 0
            left *= extent - places[own].unique().numel()
            left_each *= extent - index[leaves][own].bincount(minlength=count)
        return shape.numel() - left, shape.numel() - left_each

    def weights(self) -> list[Key]:
        """The parameters of convolutions and linear layers."""
        view = self.flow.view
        calls = [call for node in view.root.graph.nodes if (call := view.call(node)) is not None]
        counted = [call for call in calls if call.op.traits >= COUNTED]
        paths = [path for call in counted for path in call.params.values() if path is not None]
        keys = dict.fromkeys(self.flow.key(path) for path in paths)
        return [key for key in keys if isinstance(self.tensors.get(key), nn.Parameter)]
