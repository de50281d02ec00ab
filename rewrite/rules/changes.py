"""When and where the working graph was changed: what was found out before may hold no longer."""

from __future__ import annotations

from bisect import bisect_right

from torch import fx

from ..torch_internals import order_of

Order = tuple[int, ...]
"""A place in the order of a graph, as `order_of` gives it; () is in front of all."""


class Changes:
    """Changes of the working graph, counted. What a node gives follows from what stands before it,
    so that of every change only its first node is kept.
    """

    def __init__(self) -> None:
        self.now = 0
        # Of several changes the first in the graph counts until an earlier one comes: (count,
        # order), both rising.
        self._firsts: list[tuple[int, Order]] = []

    def at(self, node: fx.Node) -> None:
        """Nothing in front of `node` is to be changed."""
        self._note(order_of(node))

    def everywhere(self) -> None:
        """Another graph takes the place of the present one."""
        self._note(())

    def since(self, count: int) -> Order | None:
        """In front of what all was left as it was since then; None if nothing was changed."""
        place = bisect_right(self._firsts, count, key=lambda change: change[0])
        return self._firsts[place][1] if place < len(self._firsts) else None

    def _note(self, order: Order) -> None:
        self.now += 1
        while self._firsts and self._firsts[-1][1] >= order:
            self._firsts.pop()
        self._firsts.append((self.now, order))
