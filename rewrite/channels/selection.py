"""What is left of axes once some features are removed."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .labels import Labels, along
from .units import NONE, Units

Axes = Mapping[int, Tensor]
"""Axis -> the positions that stay, int64, for axes that lose some."""


class Selection:
    """Which positions stay. removed: leaves (see `Units.leaves`)."""

    def __init__(self, atoms: Units, removed: Collection[int]) -> None:
        self._atoms, self._table = atoms, atoms.table()
        self._removed = torch.zeros(len(atoms), dtype=torch.bool)
        self._dead = torch.zeros(len(atoms), dtype=torch.bool)
        if removed:
            self._remove(removed)

    def _remove(self, leaves: Collection[int]) -> None:
        self._removed[[self._atoms.root(leaf) for leaf in leaves]] = True
        self._dead = self._removed[self._table].any(1)

    def more(self, removed: Collection[int]) -> Selection:
        """The same without these leaves."""
        other = copy.copy(self)
        other._removed = self._removed.clone()
        other._remove(removed)
        return other

    def lost_since(self, earlier: Selection) -> Tensor:
        """The atoms that went in between, bool [atoms]."""
        return self._dead & ~earlier._dead

    def products(self, lost: Tensor) -> bool:
        """Whether one of these atoms is a product."""
        return bool((self._table[lost][:, 1:] != NONE).any())

    def axis(self, tracks: Labels, axis: int) -> Tensor | None:
        """The positions that stay; None where all of them do."""
        gone = [self._dead[vector] for vector in along(tracks, axis)]
        if not any(bool(each.any()) for each in gone):
            return None
        return torch.stack(gone).any(0).logical_not().nonzero().reshape(-1)

    def axes(self, tracks: Labels, rank: int) -> Axes:
        """The same for every axis that loses something."""
        found = {axis: self.axis(tracks, axis) for axis in range(rank)}
        return {axis: kept for axis, kept in found.items() if kept is not None}


def selected(tensor: Tensor, axes: Axes) -> Tensor:
    """What stays of a tensor."""
    for axis, kept in axes.items():
        tensor = tensor.index_select(axis, kept)
    return tensor


def shrunk(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """What stays of a shape."""
    return tuple(len(axes[axis]) if axis in axes else n for axis, n in enumerate(shape))
