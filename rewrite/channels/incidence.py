"""Which of many groups have an atom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .units import NONE


class Incidence:
    """Groups by the atoms that they have: `_groups[starts[atom] : starts[atom] + counts[atom]]`.
    NONE is in no group.
    """

    def __init__(self, atoms: Tensor, groups: Tensor, count: int) -> None:
        """Pairs of an atom below `count` and a group, int64 [pairs] each."""
        atoms, order = atoms.sort(stable=True)
        self._groups = groups[order]
        self._counts = atoms.bincount(minlength=count)
        self._starts = self._counts.cumsum(0) - self._counts
        self._counts[NONE] = 0

    @classmethod
    def of_lists(cls, lists: Sequence[Tensor], count: int) -> Incidence:
        """Groups are numbered as they come, with the atoms of each."""
        none = torch.zeros(0, dtype=torch.int64)
        groups = torch.arange(len(lists)).repeat_interleave(torch.tensor([*map(len, lists)]).long())
        return cls(torch.cat([none, *lists]), groups, count)

    @classmethod
    def of_table(cls, table: Tensor) -> Incidence:
        """Each row of atoms, [rows, most atoms], is a group."""
        rows = torch.arange(len(table)).repeat_interleave(table.shape[1])
        return cls(table.reshape(-1), rows, len(table))

    def of(self, atoms: Tensor) -> Tensor:
        """Those that have one of these atoms, int64; as often as they have one of them."""
        starts, counts = self._starts[atoms], self._counts[atoms]
        first = (starts - counts.cumsum(0) + counts).repeat_interleave(counts)
        return self._groups[first + torch.arange(len(first))]
