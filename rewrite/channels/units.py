"""Units: the smallest features of a model that can be removed, and what ties them to each other.

A feature (a filter, a neuron, a head) is an atom: a whole number above 0. Two atoms that must stand
or fall together are coupled (union-find, by hand: the time of a cut goes into its inner loops, and
its parents are read as one tensor). An atom may be a product: channel `c` of a tensor that is
read as heads is there as long as head `c // E` and width `c % E` both are. An atom that must stay
is blocked, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NONE = 0
"""Stands where an axis has no feature: space, time, the batch, or what comes from outside."""


@dataclass(frozen=True, slots=True)
class KeepReason:
    """Why atoms must stay: the node, and what it does with them. is_boundary: they can be seen from
    outside the model.
    """

    node: str
    reason: str
    is_boundary: bool = False

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


class Units:
    """All atoms of one graph."""

    def __init__(self) -> None:
        self._parent = [NONE]
        self._parts: dict[int, tuple[int, ...]] = {}
        self._blocked: dict[int, KeepReason] = {}
        self._roots: Tensor | None = None
        self._table: Tensor | None = None

    def copy(self) -> Units:
        """The same atoms; what is coupled or blocked here from now on is not there."""
        other = Units()
        other._parent = list(self._parent)
        other._parts, other._blocked = dict(self._parts), dict(self._blocked)
        other._roots, other._table = self._roots, self._table
        return other

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, number: int) -> Tensor:
        """New atoms, int64 [number]."""
        first = len(self._parent)
        self._roots = self._table = None
        self._parent.extend(range(first, first + number))
        return torch.arange(first, first + number)

    def root(self, atom: int) -> int:
        """The atom that stands for all that are coupled with this one."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = atom = parent[parent[atom]]
        return atom

    def roots(self) -> Tensor:
        """The root of every atom, int64 [len(self)]."""
        if self._roots is None:
            found = torch.tensor(self._parent)
            while not torch.equal(found[found], found):
                found = found[found]
            self._roots = found
        return self._roots

    def table(self) -> Tensor:
        """The leaves of every atom, int64 [len(self), most leaves], filled up with NONE."""
        if self._table is None:
            self._table = self._leaves_of_all()
        return self._table

    def _leaves_of_all(self) -> Tensor:
        roots, products = self.roots(), self.products()
        found = roots[:, None]
        if not products:
            return found
        parts = roots[_padded([self._parts[product] for product in products])]
        places = torch.full((len(self),), -1)
        places[products] = torch.arange(len(products))
        while bool((places[parts] >= 0).any()):  # products of products
            inner = parts[places[parts].clamp_min(0)]
            alone = torch.zeros_like(inner)
            alone[..., 0] = parts
            nested = (places[parts] >= 0)[..., None]
            parts = _compact(torch.where(nested, inner, alone).flatten(1))
        parts = _compact(parts)
        found = torch.nn.functional.pad(found, (0, parts.shape[1] - 1))
        found[products] = parts
        return found[roots]

    def leaves(self, atom: int) -> tuple[int, ...]:
        """The roots that a product consists of; the root alone where it is none."""
        root = self.root(atom)
        parts = self._parts.get(root)
        if parts is None:
            return (root,)
        return tuple(dict.fromkeys(leaf for part in parts for leaf in self.leaves(part)))

    def blocked(self, leaf: int) -> KeepReason | None:
        return self._blocked.get(self.root(leaf))

    def blocked_among(self, leaves: Iterable[int]) -> list[int]:
        return [leaf for leaf in leaves if leaf in self._blocked]

    def is_product(self, atom: int) -> bool:
        return self.root(atom) in self._parts

    def products(self) -> list[int]:
        """The roots that are products."""
        return [atom for atom in self._parts if self._parent[atom] == atom]

    # -- ties --------------------------------------------------------------------------------------

    def block(self, atoms: Iterable[int], why: KeepReason) -> None:
        """They must stay. The first reason is kept."""
        for atom in atoms:
            if atom != NONE:
                for leaf in self.leaves(atom):
                    self._blocked.setdefault(leaf, why)

    def split(self, atom: int, parts: tuple[int, ...]) -> None:
        """The atom is a product of these from now on."""
        root, self._table = self.root(atom), None
        self._parts[root] = parts
        why = self._blocked.pop(root, None)
        if why is not None:
            self.block(parts, why)

    def couple(self, left: Sequence[int], right: Sequence[int], why: KeepReason) -> None:
        """Two products are one position. Where they cannot be matched, both are blocked."""
        a = list(dict.fromkeys(leaf for atom in left for leaf in self.leaves(atom)))
        b = list(dict.fromkeys(leaf for atom in right for leaf in self.leaves(atom)))
        if a == b:
            return
        a, b = [x for x in a if x not in b], [x for x in b if x not in a]
        if len(a) == len(b):
            for x, y in zip(a, b, strict=True):
                self._join(x, y)
        elif 1 in (len(a), len(b)) and min(len(a), len(b)):
            single, several = (a, b) if len(a) == 1 else (b, a)
            self.split(single[0], tuple(several))
        else:
            self.block((*a, *b), why)

    def couple_each(self, left: Sequence[int], right: Sequence[int], why: KeepReason) -> None:
        """Position by position; NONE where a position has no feature."""
        root, parts = self.root, self._parts
        for a, b in zip(left, right, strict=True):
            x, y = root(a), root(b)
            if x == y:
                continue
            if NONE in (x, y):
                self.block((x, y), why)
            elif x in parts or y in parts:
                self.couple((x,), (y,), why)
            else:
                self._join(x, y)

    def _join(self, left: int, right: int) -> None:
        """Two leaves become one."""
        left, right = self.root(left), self.root(right)
        if left == right:
            return
        left, right = min(left, right), max(left, right)
        self._roots = self._table = None
        self._parent[right] = left
        why = self._blocked.pop(right, None)
        if why is not None:
            self._blocked.setdefault(left, why)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[NONE] * (width - len(row))] for row in rows])


def _compact(rows: Tensor) -> Tensor:
    """Each number of a row once, at its first place, then NONE."""
    earlier = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).tril(-1)
    again = ((rows[:, :, None] == rows[:, None, :]) & earlier).any(2)
    rows = torch.where(again, NONE, rows)
    order = (rows == NONE).long().argsort(dim=1, stable=True)
    width = int((rows != NONE).sum(1).max())
    return rows.gather(1, order)[:, : max(width, 1)]
