"""What `D` stands for in a rule over dimensions: its size in arithmetic, its class in questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..channels.classes import DimClass
from ..channels.declared import statistic_axes, summed_axes
from ..channels.flow import Flow, Place
from ..channels.labels import Labels
from ..channels.sizes import shape_at
from ..channels.units import NONE
from ..graph.index import GraphView
from ..ops.call import tensor_at
from .scope import Scope


class DimValue(int):
    """The size of a dimension class, with the class and the analysis that it comes from."""

    flow: Flow
    dim: DimClass

    @classmethod
    def of(cls, flow: Flow, dim: DimClass) -> DimValue:
        extent = cls(dim.size)
        extent.flow, extent.dim = flow, dim
        return extent


def boundary(scope: Scope, dim: DimValue) -> str | None:
    """The inputs and outputs of the model at which the dimension can be seen; none if it cannot."""
    found = [block.node for block in dim.dim.blocks if block.is_boundary]
    return ", ".join(found) or None


def blocker(scope: Scope, dim: DimValue) -> str | None:
    """The op inside the model that keeps the dimension from being cut, and why."""
    return next((str(block) for block in dim.dim.blocks if not block.is_boundary), None)


def sliceable(scope: Scope, dim: DimValue) -> bool:
    return blocker(scope, dim) is None


def gathers(scope: Scope, dim: DimValue) -> str | None:
    """The op that reads all of the dimension without weights: a norm that takes statistics over it,
    or a product of two values. None where only weights read it.
    """
    flow = dim.flow
    readers = [path for path, axis in dim.dim.places if flow.roles.get((path, axis)) == "reads"]
    weighed = {node for path in readers for node, _ in flow.view.owners(path)}
    sums = (n for n in flow.contracted if n not in weighed and _summed(dim, n))
    found = (*(n for n in flow.statistics if _measured(dim, n)), *sums)
    return next((str(node.meta.get("site") or node.name) for node in found), None)


def _summed(dim: DimValue, node: fx.Node) -> bool:
    """Whether an op sums over features of the dimension."""
    call = dim.flow.view.call(node)
    read = {} if call is None else summed_axes(call)
    return any(_part(dim, value, axes) for value, axes in read.items())


def _measured(dim: DimValue, node: fx.Node) -> bool:
    """Whether an op takes statistics over features of the dimension; a mean of pixels does not."""
    call = dim.flow.view.call(node)
    return call is not None and bool(_part(dim, call.inputs[0], statistic_axes(call)))


def _part(dim: DimValue, value: fx.Node, axes: Iterable[int] | None = None) -> set[int]:
    """The features of the dimension that a value carries, along some of its axes."""
    along = range(len(shape_at(value))) if axes is None else axes
    found = (_leaves(dim, dim.flow.of(value), axis)[1].tolist() for axis in along)
    return set(dim.dim.leaves) & set().union(*found)


class Slices(tuple[Tensor, ...]):
    """For each axis of a parameter that carries a dimension its numbers by feature, float64 [size,
    numbers of one feature]; `places` says which axes these are.
    """

    dim: DimValue
    places: tuple[Place, ...]

    @classmethod
    def of(cls, dim: DimValue, places: Iterable[Place], read: Callable[[str], Tensor]) -> Slices:
        """`read` gives a tensor of the parameter's shape at its path."""
        found = tuple(places)
        slices = cls(_rows(dim, read(path), dim.flow.weight(path), axis) for path, axis in found)
        slices.dim, slices.places = dim, found
        return slices


def slices(*roles: str) -> Callable[[Scope, DimValue], Slices | None]:
    """The axes that carry the dimension and have one of these roles; None where there are none."""

    def ask(scope: Scope, dim: DimValue) -> Slices | None:
        flow = dim.flow
        places = [place for place in dim.dim.places if flow.roles.get(place, "rides") in roles]
        return Slices.of(dim, places, partial(tensor_at, flow.view.root)) if places else None

    return ask


def scales(scope: Scope, dim: DimValue) -> Slices | None:
    """The factors of the norms that the dimension passes (the gamma of a batch norm); None where
    there are none.
    """
    view = dim.flow.view
    owned = ((place, view.owners(place[0])) for place in dim.dim.places)
    places = [place for place, owners in owned if any(_is_scale(view, *o) for o in owners)]
    return Slices.of(dim, places, partial(tensor_at, view.root)) if places else None


def _is_scale(view: GraphView, node: fx.Node, path: str) -> bool:
    call = view.call(node)
    if call is None or "normalises" not in call.op.traits:
        return False
    return call.params.get("weight") == path


def gradients(scope: Scope, slices: Slices) -> Slices:
    """The gradient of the loss, averaged over the calibration data, for each number of `slices`."""
    return _of_loss(scope, slices, squared=False)


def fisher(scope: Scope, slices: Slices) -> Slices:
    """The squared gradient of the loss of a sample, averaged over samples: the diagonal of the
    empirical Fisher matrix, which stands for the Hessian (Theis et al. 2018, arXiv:1801.05787).
    """
    return _of_loss(scope, slices, squared=True)


def _of_loss(scope: Scope, slices: Slices, *, squared: bool) -> Slices:
    state, module = scope.state, slices.dim.flow.view.root
    found = state.samples.slopes(module, squared)
    read = partial(_slope, found, module)
    return Slices.of(slices.dim, slices.places, read)


def _slope(found: Mapping[int, Tensor], module: fx.GraphModule, path: str) -> Tensor:
    tensor = tensor_at(module, path)
    return found.get(id(tensor), torch.zeros_like(tensor))


LOOKS = 1 << 14
"""Numbers of a feature that are looked at, in one value; of more, as many are taken evenly."""


def activations(scope: Scope, dim: DimValue) -> tuple[Tensor, ...]:
    """What ops that sum over the dimension read of it on calibration data, float64 [size, numbers]:
    each of them, for every feature, a number for each sample and position.
    """
    flow, samples = dim.flow, scope.state.samples
    nodes = dict.fromkeys(v for n in flow.contracted for v in _values(n))
    axes = {node: found for node in nodes if (found := _carriers(dim, node))}
    seen: dict[tuple[fx.Node, int], list[Tensor]] = {(n, i): [] for n in axes for i in axes[n]}
    for batch in samples.recorded(flow.view.root, list(axes)):
        for (node, axis), parts in seen.items():
            parts.append(thinned(_rows(dim, batch[node], flow.of(node), axis)))
    return tuple(thinned(torch.cat(parts, 1)) for parts in seen.values())


def thinned(rows: Tensor) -> Tensor:
    """At most `LOOKS` numbers of each feature."""
    count = rows.shape[1]
    return rows if count <= LOOKS else rows[:, torch.linspace(0, count - 1, LOOKS).long()]


def _values(node: fx.Node) -> Iterator[fx.Node]:
    return (value for value in node.all_input_nodes if value.op != "get_attr")


def _carriers(dim: DimValue, value: fx.Node) -> list[int]:
    """The axes of a value along which all of the dimension lies."""
    rank, wanted = len(shape_at(value)), set(dim.dim.leaves)
    tracks = dim.flow.of(value)
    return [i for i in range(rank) if wanted.issubset(_leaves(dim, tracks, i)[1].tolist())]


def _rows(dim: DimValue, tensor: Tensor, tracks: Labels, axis: int) -> Tensor:
    tensor = tensor.detach().double().movedim(axis, 0)
    tensor = tensor.reshape(len(tensor), -1)
    if _is_whole(dim, tracks, axis):
        return tensor
    index = _positions(dim, tracks, axis)
    lacking = index < 0
    if not bool(lacking.any()):
        return tensor[index].flatten(1)
    return torch.where(lacking[:, :, None], 0.0, tensor[index]).flatten(1)


def _is_whole(dim: DimValue, tracks: Labels, axis: int) -> bool:
    """Whether the axis is the dimension, feature by feature, as it is for most weights."""
    own = [track.reshape(-1) for track in tracks if track.shape[axis] > 1]
    if len(own) != 1 or len(own[0]) != dim.dim.size:
        return False
    leaves = dim.flow.atoms.table()[own[0]]
    return not bool(leaves[:, 1:].any()) and leaves[:, 0].tolist() == list(dim.dim.leaves)


def _positions(dim: DimValue, tracks: Labels, axis: int) -> Tensor:
    """Where on the axis each feature is, int64 [size, most]; -1 where it is there less often."""
    places, leaves = _leaves(dim, tracks, axis)
    known, order = torch.tensor(dim.dim.leaves).sort()
    at = torch.searchsorted(known, leaves).clamp_max(len(known) - 1)
    ours = known[at] == leaves
    feature, sorting = order[at[ours]].sort(stable=True)
    counts = feature.bincount(minlength=len(known))
    nth = torch.arange(len(feature)) - (counts.cumsum(0) - counts)[feature]
    index = torch.full((len(known), int(counts.max())), -1)
    index[feature, nth] = places[ours][sorting]
    return index


def _leaves(dim: DimValue, tracks: Labels, axis: int) -> tuple[Tensor, Tensor]:
    """Positions of the axis and the leaves there, int64 [pairs] each."""
    table = dim.flow.atoms.table()
    rows = [table[track.reshape(-1)] for track in tracks if track.shape[axis] > 1]
    numbers = [torch.arange(len(own)).repeat_interleave(own.shape[1]) for own in rows]
    none = torch.zeros(0, dtype=torch.int64)
    places, leaves = torch.cat([none, *numbers]), torch.cat([none, *(r.flatten() for r in rows)])
    return places[leaves != NONE], leaves[leaves != NONE]


DIM_QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "boundary": boundary,
    "blocker": blocker,
    "sliceable": sliceable,
    "gathers": gathers,
    "writers": slices("writes"),
    "readers": slices("reads"),
    "riders": slices("rides"),
    "params": slices("writes", "reads", "rides"),
    "scales": scales,
    "gradients": gradients,
    "fisher": fisher,
    "activations": activations,
}
