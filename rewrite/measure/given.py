"""What a model gives for some inputs, for several who compare others with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from ..graph.runs import own_inputs
from .alike import common_front, held, resumed
from .recording import Order, Stops, stops_of

ROOM = 1 << 25
"""Bytes of outputs that are kept, and as many of values inside of runs that are held."""

Run = Callable[[nn.Module, tuple[Any, ...]], list[Any]]
"""The outputs of a model for the inputs of one batch."""


@dataclass
class Given:
    """The outputs of `model` for each of `batches`, one after another. `run` gives those of any
    model; this one runs once for each batch as long as there is room, and whenever it is asked for
    those behind.
    """

    model: nn.Module
    run: Run
    batches: Sequence[tuple[Any, ...]]
    kept: list[list[Any]] = field(default_factory=list)
    room: int = field(default_factory=lambda: ROOM)
    stops: list[Stops] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[Any]]:
        for place, args in enumerate(self.batches):
            if place < len(self.kept):
                yield self.kept[place]
                continue
            found = self._given(place, args)
            self._keep(place, found)
            yield found

    def _given(self, place: int, args: tuple[Any, ...]) -> list[Any]:
        if not self.stops:
            return self.run(self.model, args)
        assert isinstance(self.model, fx.GraphModule)
        return held(self.model, args, self.stops[place])

    def _keep(self, place: int, found: list[Any]) -> None:
        """Copies: a model may give what it writes into when it runs again."""
        self.room -= sum(leaf.nbytes for leaf in found if isinstance(leaf, Tensor))
        if place == len(self.kept) and self.room >= 0:
            self.kept.append(own_inputs(found))

    # -- models that begin alike -------------------------------------------------------------------

    def hold(self) -> None:
        """Many models are going to be compared, each of which differs from some node on: from now
        on runs are held, for those to go on from.
        """
        model = self.model
        if not self.stops and isinstance(model, fx.GraphModule):
            self.stops = stops_of(model, len(self.batches), ROOM)

    def behind(self, order: Order) -> Given:
        """What the model gives once it was changed there: in front of it runs stand as they did."""
        for stops in self.stops:
            stops.drop(order)
        return Given(self.model, self.run, self.batches, stops=self.stops)

    def beside(self, other: nn.Module) -> Iterator[list[Any]]:
        """What another model gives for the same batches."""
        if not self.stops or not isinstance(other, fx.GraphModule):
            yield from (self.run(other, args) for args in self.batches)
            return
        assert isinstance(self.model, fx.GraphModule)
        front = common_front(self.model, other)
        for args, stops in zip(self.batches, self.stops, strict=True):
            found = resumed(other, front, args, stops)
            yield self.run(other, args) if found is None else found
