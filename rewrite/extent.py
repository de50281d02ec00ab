"""What `D` stands for in a rule over dimensions: its size in arithmetic, its class in questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .call import tensor_at
from .channels.classes import DimClass
from .channels.flow import Flow
from .evaluate import Scope


class Extent(int):
    """The size of a dimension class, with the class and the analysis that it comes from."""

    flow: Flow
    dim: DimClass

    @classmethod
    def of(cls, flow: Flow, dim: DimClass) -> Extent:
        extent = cls(dim.size)
        extent.flow, extent.dim = flow, dim
        return extent


def boundary(scope: Scope, dim: Extent) -> str | None:
    """The inputs and outputs of the model at which the dimension can be seen; none if it cannot."""
    found = [block.node for block in dim.dim.blocks if block.is_boundary]
    return ", ".join(found) or None


def blocker(scope: Scope, dim: Extent) -> str | None:
    """The op inside the model that keeps the dimension from being cut, and why."""
    return next((str(block) for block in dim.dim.blocks if not block.is_boundary), None)


def sliceable(scope: Scope, dim: Extent) -> bool:
    return blocker(scope, dim) is None


def slices(*roles: str) -> Callable[[Scope, Extent], tuple[Tensor, ...]]:
    """For each axis of a parameter that carries the dimension and has one of these roles: its
    numbers by feature, float64 [size, numbers of one feature].
    """

    def ask(scope: Scope, dim: Extent) -> tuple[Tensor, ...]:
        flow = dim.flow
        places = (place for place in dim.dim.places if flow.roles.get(place, "rides") in roles)
        return tuple(_rows(dim, path, axis) for path, axis in places)

    return ask


def _rows(dim: Extent, path: str, axis: int) -> Tensor:
    tensor = tensor_at(dim.flow.view.root, path).detach().double().movedim(axis, 0)
    tensor, places = tensor.reshape(len(tensor), -1), _positions(dim, path, axis)
    width = max(map(len, places))
    if all(len(own) == width for own in places):
        index = torch.tensor(places)
        whole = width == 1 and torch.equal(index[:, 0], torch.arange(len(tensor)))
        return tensor if whole else tensor[index].flatten(1)
    index = torch.tensor([[*own, *[-1] * (width - len(own))] for own in places])
    return torch.where((index < 0)[:, :, None], 0.0, tensor[index]).flatten(1)


def _positions(dim: Extent, path: str, axis: int) -> list[list[int]]:
    """Where on the axis each feature is."""
    found: dict[int, list[int]] = {leaf: [] for leaf in dim.dim.leaves}
    for place, leaf in _leaves(dim.flow, path, axis):
        if leaf in found:
            found[leaf].append(place)
    return list(found.values())


def _leaves(flow: Flow, path: str, axis: int) -> Iterator[tuple[int, int]]:
    for track in flow.params[flow.key(path)]:
        if track.shape[axis] > 1:
            for place, atom in enumerate(track.reshape(-1).tolist()):
                if flow.atoms.is_product(atom):
                    yield from ((place, leaf) for leaf in flow.atoms.leaves(atom))
                else:
                    yield place, flow.atoms.root(atom)


DIM_QUESTIONS: Mapping[str, Callable[..., Any]] = {
    "boundary": boundary,
    "blocker": blocker,
    "sliceable": sliceable,
    "writers": slices("writes"),
    "readers": slices("reads"),
    "riders": slices("rides"),
    "params": slices("writes", "reads", "rides"),
}
