"""What is left of axes once some features are removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .labels import Labels, along
from .units import Units

Axes = Mapping[int, Tensor]
"""Axis -> the positions that stay, int64, for axes that lose some."""


class Selection:
    """Which positions stay. removed: leaves (see `Atoms.leaves`)."""

    def __init__(self, atoms: Units, removed: Collection[int]) -> None:
        dead = torch.zeros(len(atoms), dtype=torch.bool)
        dead[[atoms.root(leaf) for leaf in removed]] = True
        self._dead = dead[atoms.table()].any(1)

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
