"""Dimension classes: features that stand in the same axes of the same parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import Flow, Key, Place
from .labels import Labels, OncePerVector, axes_of
from .units import NONE, KeepReason

Role = tuple[Place, int]
"""A place, and which factor of a product the feature is there: heads are the first, their widths
the second.
"""


Listed = tuple[Role, Tensor]


@dataclass(frozen=True, slots=True)
class DimClass:
    """One dimension of a model, wherever it appears.

    leaves: its features, in the order of the first axis that they appear in. roles: the axes of
    parameters that carry it, and which factor of the axis it is. blocks: why it cannot be cut; none
    if it can.
    """

    name: str
    leaves: tuple[int, ...]
    roles: tuple[Role, ...]
    blocks: tuple[KeepReason, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """The axes of parameters that carry it."""
        return tuple(dict.fromkeys(place for place, _ in self.roles))

    @property
    def size(self) -> int:
        return len(self.leaves)


def classes(flow: Flow) -> list[DimClass]:
    """All dimension classes that something makes or reads, those that can be cut first, in the
    order of the graph.
    """
    paths: dict[Key, str] = {}
    for path, key in flow.paths.items():
        paths.setdefault(key, path)
    return classes_among(flow, [(paths[key], tracks) for key, tracks in flow.params.items()])


def classes_among(
    flow: Flow, params: Iterable[tuple[str, Labels]], among: Tensor | None = None
) -> list[DimClass]:
    """The same for those leaves alone that are `among` these, int64; `params` are all that carry
    some of them, by their first paths.
    """
    listed = list(_listed(flow, params))
    products = {place for (place, factor), _ in listed if factor}
    groups = ((leaves, roles) for leaves, roles in _groups(flow, listed, among) if len(leaves) > 1)
    found = [_class(flow, leaves, roles, products) for leaves, roles in groups]
    used = [dim for dim in found if any(flow.roles.get(p, "rides") != "rides" for p in dim.places)]
    return sorted(used, key=lambda dim: bool(dim.blocks))


def _class(
    flow: Flow, leaves: list[int], roles: list[Role], products: Collection[Place]
) -> DimClass:
    """A factor of an axis is named after it, with its number: `qkv:0` heads of widths `qkv:1`."""
    blocks = dict.fromkeys(flow.atoms.blocked(leaf) for leaf in leaves)
    (path, axis), factor = roles[0]
    name = path.rpartition(".")[0] or path
    name = f"{name}:{factor}" if (path, axis) in products else name
    return DimClass(name, tuple(leaves), tuple(roles), tuple(b for b in blocks if b is not None))


def _groups(
    flow: Flow, listed: Sequence[Listed], among: Tensor | None
) -> Iterator[tuple[list[int], list[Role]]]:
    """Leaves with the same roles, blocked ones apart from others.

    Every role gets a random number; leaves are told apart by the sum of theirs, so that no list of
    roles has to be made for each leaf. Two sums are the same by chance once in 2^62.
    """
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(1, 2**62, (len(listed) + 1,), generator=generator)
    sums = torch.zeros(len(flow.atoms), dtype=torch.int64)
    for (_, leaves), key in zip(listed, keys[1:], strict=True):
        sums[leaves] += key
    each_once = {id(leaves): leaves for _, leaves in listed}
    order = _once(torch.cat([*each_once.values(), keys[:0]]))
    order = order if among is None else order[torch.isin(order, among)]
    sums[flow.atoms.blocked_among(order.tolist())] += keys[0]
    groups: dict[int, list[int]] = {}
    for leaf, total in zip(order.tolist(), sums[order].tolist(), strict=True):
        groups.setdefault(total, []).append(leaf)
    firsts = {leaves[0]: leaves for leaves in groups.values()}
    roles: dict[int, list[Role]] = {leaf: [] for leaf in firsts}
    marks = torch.zeros(len(flow.atoms), dtype=torch.bool)
    marks[list(firsts)] = True
    for role, leaves in listed:
        for leaf in leaves[marks[leaves]].tolist():
            roles[leaf].append(role)
    return ((firsts[leaf], found) for leaf, found in roles.items())


def _listed(flow: Flow, params: Iterable[tuple[str, Labels]]) -> Iterator[Listed]:
    """Every role, and the leaves that have it, in the order of the graph."""
    table = flow.atoms.table()
    factors = OncePerVector(lambda vector: _factors(table[vector]))
    for path, tracks in params:
        for track in tracks:
            for factor, leaves in enumerate(factors.of(track.reshape(-1))):
                for axis in axes_of(track):
                    yield ((path, axis), factor), leaves


def _factors(rows: Tensor) -> list[Tensor]:
    """The leaves of atoms, by the factor of the product that they are; each once."""
    used = int((rows != NONE).any(0).sum())
    columns = (_once(rows[:, i]) for i in range(max(used, 1)))
    return [column[column != NONE] for column in columns]


def _once(numbers: Tensor) -> Tensor:
    """Each number once, in the order in which they come first."""
    found, place = numbers.unique(return_inverse=True)
    first = torch.full_like(found, len(numbers))
    first.scatter_reduce_(0, place, torch.arange(len(numbers)), "amin")
    return numbers[first.sort().values]
