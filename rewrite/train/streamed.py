"""What is trained on where it does not fit into memory: batches that are read anew each epoch."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...grammar.diagnostics import fail
from ..measure.batches import batch_size
from ..measure.source import Stream
from ..torch_internals import tree_leaves, tree_map
from .data import StepBatch, TrainingData, detached, digest_of


class OwnGenerators:
    """Generators of torch, `random` and NumPy from which a loader alone draws, while it is entered:
    those of the process go on as if nothing had been drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.inside = seed, ()

    def __enter__(self) -> None:
        self.outside = _generators()
        if self.inside:
            _go_on(self.inside)
        else:
            _begin(self.seed)

    def __exit__(self, *error: object) -> None:
        self.inside = _generators()
        _go_on(self.outside)


def _generators() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    held = numpy.random.get_state() if numpy else None
    return torch.get_rng_state(), random.getstate(), held


def _go_on(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    if states[2] is not None:
        sys.modules["numpy"].random.set_state(states[2])


def _begin(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed)


def _divides(pair: Any, size: int) -> bool:
    """Whether each sample is a row of each tensor of a batch."""
    return all(
        leaf is None or (isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == size)
        for leaf in tree_leaves(pair)
    )


def _part(leaf: Any, rows: Tensor) -> Any:
    return leaf[rows] if isinstance(leaf, Tensor) else leaf


@dataclass
class StreamedData:
    """Batches as a loader yields them: their size and order, and what is drawn for each sample, are
    the loader's. samples: how many the last epoch had, 0 before there was one.
    """

    stream: Stream
    taken: Callable[[Any], tuple[tuple[Any, ...], Any]]
    samples: int = 0
    targets: None = None
    divides: bool = False

    def example(self) -> tuple[Any, ...]:
        """The inputs of the first batch."""
        return next(self._read(0))[0]

    def digest(self) -> str:
        """SHA-256 of the first batch: reading all of them would take as long as an epoch."""
        return "first batch " + digest_of(tree_leaves(next(self._read(0))))

    def steps(self, batch: int) -> int | None:
        """How many steps an epoch has; None where the loader does not know."""
        try:
            return len(self.stream)
        except TypeError:
            return None

    def epoch(
        self, batch: int, generator: torch.Generator, rank: int = 0, world: int = 1
    ) -> Iterator[StepBatch]:
        """All batches once. What the loader draws follows from the generator, in every process
        alike: each reads all batches and takes its part of each.
        """
        seed, seen = int(torch.randint(1 << 32, (), generator=generator)), 0
        for number, pair in enumerate(self._read(seed)):
            rows = torch.arange(batch_size(pair[0]))
            if world == 1 or not _divides(pair, len(rows)):
                yield StepBatch(*pair, rows + seen, float(number % world == rank))
            else:
                yield _share_of(pair, rows, seen, rank, world)
            seen += len(rows)
        self.samples = seen

    def _read(self, seed: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Inputs and target of each batch that holds a sample. Raises D002 where there is none."""
        batches, some, drawn = iter(self.stream), False, OwnGenerators(seed)
        while True:
            with drawn:
                batch = next(batches, None)
            if batch is None:
                break
            pair = tree_map(detached, self.taken(batch))
            if batch_size(pair[0]):
                some = True
                yield pair
        if not some:
            hint = "an iterator yields its batches only once: give a loader, or `data(split)`"
            raise fail("D002", "there is no sample to train on", self.stream.place, help=hint)


def _share_of(pair: Any, rows: Tensor, seen: int, rank: int, world: int) -> StepBatch:
    """One process's part of a batch. Without a sample it takes part with one that weighs 0."""
    own = rows[rank::world]
    share, own = len(own) / len(rows), own if len(own) else rows[:1]
    args, target = tree_map(lambda leaf: _part(leaf, own), pair)
    return StepBatch(args, target, own + seen, share)


Data = TrainingData | StreamedData
"""What a training reads."""
