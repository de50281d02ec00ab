"""Labels: which feature each position of a tensor belongs to.

A track is an int64 tensor of atoms with as many axes as the value that it describes; an axis along
which it does not vary has extent 1. A value has several tracks where its positions are products
(heads and widths, say). So an op that only moves numbers moves tracks: it runs on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .units import NONE, KeepReason, Units

Track = Tensor
Labels = tuple[Track, ...]
Vectors = tuple[Tensor, ...]
"""The tracks of one axis, int64 [extent] each."""

T = TypeVar("T")


class OncePerVector(Generic[T]):
    """What is found out about vectors, once for all that are one memory: most tracks of a chain of
    ops, and of the parameters beside it, are the same vector in other shapes.
    """

    def __init__(self, find: Callable[[Tensor], T]) -> None:
        self._find = find
        self._known: dict[tuple[int, int, int], tuple[Tensor, T]] = {}

    def of(self, vector: Tensor) -> T:
        """`vector`, [extent], is held, so that its memory is not taken by another one."""
        key = vector.data_ptr(), vector.stride(0), len(vector)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = vector, self._find(vector)
        return known[1]


def axes_of(track: Track) -> tuple[int, ...]:
    """The axes along which a track varies."""
    return tuple(axis for axis, extent in enumerate(track.shape) if extent > 1)


def along(tracks: Iterable[Track], axis: int) -> Vectors:
    """The tracks that vary along this axis alone, as vectors."""
    return tuple(track.reshape(-1) for track in tracks if axes_of(track) == (axis,))


def on_axis(vector: Tensor, axis: int, rank: int) -> Track:
    """A vector as a track of a value with `rank` axes."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def axis_tracks(vectors: Iterable[Tensor], axis: int, rank: int) -> Labels:
    return tuple(on_axis(v, axis, rank) for v in vectors if len(v) > 1 and bool(v.any()))


def joined(axes: Sequence[Vectors]) -> Labels:
    """The tracks of a value from the vectors of each of its axes."""
    rank = len(axes)
    return tuple(t for axis, vectors in enumerate(axes) for t in axis_tracks(vectors, axis, rank))


def compressed(track: Track) -> Track:
    """The track with extent 1 along the axes on which it does not vary."""
    order = sorted(range(track.ndim), key=lambda axis: -track.shape[axis])
    for axis in order:
        if track.shape[axis] < 2:
            continue
        first = track.narrow(axis, 0, 1)
        if track.stride(axis) == 0 or torch.equal(first.expand_as(track), track):
            track = first
    return track


def separated(atoms: Units, tracks: Labels, why: KeepReason) -> Labels:
    """The same features, such that every track varies along one axis only."""
    if all(len(axes_of(track)) < 2 for track in tracks):
        return tracks
    return tuple(part for track in tracks for part in _apart(atoms, track, why))


def _apart(atoms: Units, track: Track, why: KeepReason) -> Labels:
    axes = axes_of(track)
    if len(axes) < 2:
        return (track,)
    if not bool(track.all()):  # partly without features
        atoms.block(track.unique().tolist(), why)
        return ()
    block = track.reshape([track.shape[axis] for axis in axes])
    factors = _product(atoms, block) or _factors(atoms, block) or _aligned(atoms, block, why)
    found: list[Vectors] = [()] * track.ndim
    for axis, vectors in zip(axes, factors, strict=True):
        found[axis] = vectors
    return joined(found)


def _product(atoms: Units, block: Tensor) -> list[Vectors] | None:
    """New atoms for each axis, where the block's are plain and each stands for itself; equal rows
    of an axis (repeated heads) share one.
    """
    inverses = []
    for axis in range(block.ndim):
        rows = block.movedim(axis, 0).reshape(block.shape[axis], -1)
        _, inverse = torch.unique(rows, dim=0, return_inverse=True)
        inverses.append(_by_first(inverse))
    firsts = [_first_places(inverse) for inverse in inverses]
    core = block
    for axis, places in enumerate(firsts):
        core = core.index_select(axis, places)
    flat = [atoms.root(atom) for atom in core.reshape(-1).tolist()]
    if len(set(flat)) < len(flat) or any(atoms.is_product(atom) for atom in flat):
        return None
    axes = [atoms.fresh(extent) if extent > 1 else None for extent in core.shape]
    grids = [
        axis.reshape([-1 if i == k else 1 for i in range(core.ndim)]).expand(core.shape).reshape(-1)
        for k, axis in enumerate(axes)
        if axis is not None
    ]
    for atom, *parts in zip(flat, *(grid.tolist() for grid in grids), strict=True):
        atoms.split(atom, tuple(parts))
    pairs = zip(axes, inverses, strict=True)
    return [() if axis is None else (axis[inverse],) for axis, inverse in pairs]


def _by_first(inverse: Tensor) -> Tensor:
    """Groups numbered in the order of their first members."""
    order: dict[int, int] = {}
    return torch.tensor([order.setdefault(group, len(order)) for group in inverse.tolist()])


def _first_places(inverse: Tensor) -> Tensor:
    seen: dict[int, int] = {}
    for place, group in enumerate(inverse.tolist()):
        seen.setdefault(group, place)
    return torch.tensor(list(seen.values()))


def _factors(atoms: Units, block: Tensor) -> list[Vectors] | None:
    """The axes that each factor of products varies along; None where one needs several."""
    leaves = [atoms.leaves(atom) for atom in block.reshape(-1).tolist()]
    if len({len(each) for each in leaves}) != 1:
        return None
    found: list[list[Tensor]] = [[] for _ in range(block.ndim)]
    for factor in zip(*leaves, strict=True):
        part = compressed(torch.tensor(factor).reshape(block.shape))
        axes = axes_of(part)
        if len(axes) > 1:
            return None
        if axes:
            found[axes[0]].append(part.reshape(-1))
    return [tuple(vectors) for vectors in found]


def _aligned(atoms: Units, block: Tensor, why: KeepReason) -> list[Vectors]:
    """Everything at one place of the widest axis stands and falls together."""
    axis = max(range(block.ndim), key=lambda i: block.shape[i])
    rows = block.movedim(axis, 0).reshape(block.shape[axis], -1)
    for first, *others in rows.tolist():
        for other in others:
            atoms.couple((first,), (other,), why)
    return [(rows[:, 0].clone(),) if i == axis else () for i in range(block.ndim)]


def couple(atoms: Units, left: Vectors, right: Vectors, why: KeepReason) -> None:
    """Position by position, two axes are one. Where only one of them has a feature, it stays."""
    if not left or not right:
        keep_all(atoms, left + right, why)
        return
    if len(left) == len(right) and all(map(torch.equal, left, right)):
        return
    if len(left) == len(right) == 1:
        atoms.couple_each(left[0].tolist(), right[0].tolist(), why)
        return
    for a, b in zip(_positions(left), _positions(right), strict=True):
        if not a or not b:
            atoms.block((*a, *b), why)
        else:
            atoms.couple(a, b, why)


def together(atoms: Units, present: Sequence[Vectors], why: KeepReason) -> Vectors:
    """One axis that several operands share."""
    first = next((vectors for vectors in present if vectors), ())
    for other in present:
        if first and other is not first:
            couple(atoms, first, other, why)
    return first


def chained(present: Sequence[Vectors], extents: Sequence[int]) -> Vectors:
    """Axes one behind another; where a part has fewer factors, or none, zeros stand for them."""
    columns = []
    for i in range(max(map(len, present), default=0)):
        pairs = zip(present, extents, strict=True)
        columns.append(torch.cat([v[i] if i < len(v) else torch.zeros(n).long() for v, n in pairs]))
    return tuple(columns)


def _positions(vectors: Vectors) -> list[tuple[int, ...]]:
    rows = zip(*(vector.tolist() for vector in vectors), strict=True)
    return [tuple(atom for atom in row if atom != NONE) for row in rows]


def keep_all(atoms: Units, tracks: Iterable[Tensor], why: KeepReason) -> None:
    """All of them must stay. Where axes were joined, a track says the same feature many times."""
    for track in tracks:
        atoms.block(track.unique().tolist(), why)


def spread(vectors: Vectors, sizes: Sequence[int], at: int) -> Vectors:
    """The vectors of factor `at` of an axis that is a product of factors with these sizes."""
    before, after = prod(sizes[:at]), prod(sizes[at + 1 :])
    if before == after == 1:
        return vectors
    return tuple(v.repeat_interleave(after).repeat(before) for v in vectors)
