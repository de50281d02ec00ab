"""What is left of axes once some features are removed."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .incidence import Incidence
from .labels import Labels, OncePerVector, axes_of, on_axis
from .units import NONE, Units

Axes = Mapping[int, Tensor]
"""Axis -> the positions that stay, int64, for axes that lose some."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """What a vector loses. gone: bool [extent]. kept: the positions that stay. left: the atoms
    there.
    """

    gone: Tensor
    kept: Tensor
    left: Tensor


class Selection:
    """Which positions stay. removed: leaves (see `Units.leaves`). lost: the atoms that went with
    the last of them, int64.
    """

    def __init__(self, atoms: Units, removed: Collection[int]) -> None:
        self._roots, self._table = atoms.roots(), atoms.table()
        self._atoms_of = Incidence.of_table(self._table)
        self._dead = torch.zeros(len(atoms), dtype=torch.bool)
        self._remove(removed)

    def _remove(self, leaves: Collection[int]) -> None:
        roots = self._roots[torch.tensor(list(leaves), dtype=torch.int64)]
        reached = self.atoms_of(roots)
        self.lost = reached[~self._dead[reached]]
        self._dead[self.lost] = True
        self._losses = OncePerVector(self._loss)

    def more(self, removed: Collection[int]) -> Selection:
        """The same without these leaves."""
        other = copy.copy(self)
        other._dead = self._dead.clone()
        other._remove(removed)
        return other

    def atoms_of(self, leaves: Tensor) -> Tensor:
        """The atoms that some of these leaves are part of."""
        return self._atoms_of.of(leaves).unique()

    def leaves_of(self, atoms: Tensor) -> Tensor:
        """The leaves that these atoms consist of."""
        leaves = self._table[atoms].unique()
        return leaves[leaves != NONE]

    def products(self, lost: Tensor) -> bool:
        """Whether one of these atoms is a product."""
        return bool((self._table[lost][:, 1:] != NONE).any())

    def axes(self, tracks: Labels) -> Axes:
        """The positions that stay, for every axis that loses something."""
        found: dict[int, list[_Loss]] = {}
        for track in tracks:
            varies = axes_of(track)
            loss = self._losses.of(track.reshape(-1)) if len(varies) == 1 else None
            if loss is not None:
                found.setdefault(varies[0], []).append(loss)
        return {axis: _kept_of_all(found[axis]) for axis in sorted(found)}

    def left(self, tracks: Labels) -> Labels:
        """The tracks at the positions that stay."""
        axes = self.axes(tracks)
        return tuple(self._left(track, axes) for track in tracks) if axes else tracks

    def _left(self, track: Tensor, axes: Axes) -> Tensor:
        own = [axis for axis in axes_of(track) if axis in axes]
        if len(own) == 1:
            loss = self._losses.of(track.reshape(-1))
            if loss is not None and loss.kept is axes[own[0]]:
                return on_axis(loss.left, own[0], track.ndim)
        return selected(track, {axis: axes[axis] for axis in own})

    def _loss(self, vector: Tensor) -> _Loss | None:
        gone = self._dead[vector]
        if not bool(gone.any()):
            return None
        kept = gone.logical_not().nonzero().reshape(-1)
        return _Loss(gone, kept, vector[kept])


def _kept_of_all(losses: list[_Loss]) -> Tensor:
    """An axis of several factors keeps what all of them keep."""
    if len(losses) == 1:
        return losses[0].kept
    return torch.stack([loss.gone for loss in losses]).any(0).logical_not().nonzero().reshape(-1)


def selected(tensor: Tensor, axes: Axes) -> Tensor:
    """What stays of a tensor."""
    for axis, kept in axes.items():
        tensor = tensor.index_select(axis, kept)
    return tensor


def since(axes: Axes, before: Axes) -> Axes:
    """Where the positions that stay are among those that stayed before, for axes that lose more."""
    found = {}
    for axis, kept in axes.items():
        known = before.get(axis)
        if known is None:
            found[axis] = kept
        elif len(kept) < len(known):
            found[axis] = torch.searchsorted(known, kept)
    return found


def shrunk(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """What stays of a shape."""
    return tuple(len(axes[axis]) if axis in axes else n for axis, n in enumerate(shape))
