"""What a model gives for some inputs, for several who compare others with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..graph.runs import own_inputs

ROOM = 1 << 25
"""Bytes of outputs that are kept."""


@dataclass
class Given:
    """The outputs of `model` for each of `batches`, one after another. `run` gives them; it runs
    once for each batch as long as there is room, and whenever it is asked for those behind.
    """

    model: nn.Module
    run: Callable[[tuple[Any, ...]], list[Any]]
    batches: Sequence[tuple[Any, ...]]
    kept: list[list[Any]] = field(default_factory=list)
    room: int = field(default_factory=lambda: ROOM)

    def __iter__(self) -> Iterator[list[Any]]:
        for place, args in enumerate(self.batches):
            if place < len(self.kept):
                yield self.kept[place]
                continue
            found = self.run(args)
            self._keep(place, found)
            yield found

    def _keep(self, place: int, found: list[Any]) -> None:
        """Copies: a model may give what it writes into when it runs again."""
        self.room -= sum(leaf.nbytes for leaf in found if isinstance(leaf, Tensor))
        if place == len(self.kept) and self.room >= 0:
            self.kept.append(own_inputs(found))
