"""What is trained on: samples in the order that a seed says, in batches, shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...grammar.diagnostics import Label, fail
from ...grammar.documents import sha256
from ..graph.digest import tensor_digest
from ..measure.batches import Pairs, batch_size
from ..torch_internals import tree_flatten, tree_leaves, tree_map, tree_unflatten


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Inputs and target of one step; rows: which samples of the data these are. share: of the whole
    batch, this process's part, 0..1.
    """

    args: tuple[Any, ...]
    target: Any
    rows: Tensor
    share: float


class TrainingData:
    """Samples in memory. Batches whose parts fit together are one table, from which new batches are
    drawn; others (texts of several lengths, say) stay as they are, in a new order each epoch.
    """

    def __init__(self, pairs: Pairs, place: Label) -> None:
        # Without the history of gradients: those of the caller's tensors are his own.
        given = [tree_map(detached, pair) for pair in pairs]
        self.pairs = [pair for pair in given if not _is_empty(pair)]
        if not self.pairs:
            raise fail("D002", "there is no sample to train on", place)
        self.table, self.spec = _table(self.pairs)
        self.sizes = [batch_size(args) for args, _ in self.pairs]
        self.samples = sum(self.sizes)

    @property
    def divides(self) -> bool:
        """Whether samples are put together to batches of a size that is asked for."""
        return self.table is not None

    @property
    def targets(self) -> Any:
        """Of all samples, or of each batch."""
        return self.args_of(slice(None))[1] if self.table else [y for _, y in self.pairs]

    def args_of(self, rows: Any) -> tuple[tuple[Any, ...], Any]:
        """Inputs and target of some samples of the table; None where data has no target."""
        assert self.table is not None
        args, target = tree_unflatten([_part(leaf, rows) for leaf in self.table], self.spec)
        return args, None if isinstance(target, tuple) and not target else target

    def example(self) -> tuple[Any, ...]:
        """The inputs of two samples, or of a batch that cannot be cut."""
        return self.args_of(slice(0, 2))[0] if self.table else self.pairs[0][0]

    def digest(self) -> str:
        """SHA-256 over all samples in the order in which they were given."""
        return digest_of(self.table or tree_leaves(self.pairs))

    def inputs_digest(self) -> str:
        """The same of the inputs alone."""
        args = self.args_of(slice(None))[0] if self.table else [args for args, _ in self.pairs]
        return digest_of(tree_leaves(args))

    def answers(self, ask: Callable[[tuple[Any, ...], Tensor], Any]) -> Tensor | None:
        """What somebody says of all samples (inputs, and which samples these are), in the batches
        that were given, so that whoever asks gets the same bits: `[samples, ...]`, or None where
        that is not one tensor.
        """
        found, numbers = [], torch.arange(self.samples).split(self.sizes)
        for (args, _), rows in zip(self.pairs, numbers, strict=True):
            said = ask(args, rows)
            if not isinstance(said, Tensor) or said.dim() == 0 or len(said) != len(rows):
                return None
            found.append(said.detach().cpu())
        same = all(x.shape[1:] == found[0].shape[1:] and x.dtype == found[0].dtype for x in found)
        return torch.cat(found) if same else None

    def steps(self, batch: int) -> int:
        """How many steps an epoch has."""
        return -(-self.samples // batch) if self.table else len(self.pairs)

    def epoch(
        self, batch: int, generator: torch.Generator, rank: int = 0, world: int = 1
    ) -> Iterator[StepBatch]:
        """All samples once, in an order that the generator draws. Every process draws the same and
        takes its part of each batch; the last batch may be smaller.
        """
        if self.table is None:
            yield from self._whole(generator, rank, world)
            return
        order = torch.randperm(self.samples, generator=generator)
        for rows in order.split(batch):
            own = rows[rank::world]
            share = len(own) / len(rows)
            # A process without a sample still takes part in the step: one that weighs nothing.
            own = own if len(own) else rows[:1]
            yield StepBatch(*self.args_of(own), own, share)

    def _whole(self, generator: torch.Generator, rank: int, world: int) -> Iterator[StepBatch]:
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        rows = torch.arange(self.samples).split(self.sizes)
        for number, at in enumerate(order):
            # Batches that cannot be cut are the step of one process; the others weigh nothing.
            args, target = self.pairs[at]
            yield StepBatch(args, target, rows[at], 1.0 if number % world == rank else 0.0)


def detached(leaf: Any) -> Any:
    """A tensor without the history of its gradients."""
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _is_empty(pair: tuple[tuple[Any, ...], Any]) -> bool:
    """Whether a batch holds no sample."""
    return batch_size(pair[0]) == 0


def digest_of(leaves: Sequence[Any]) -> str:
    """SHA-256 of all that was given: a gap between inputs is nothing."""
    given = (x for x in leaves if x is not None)
    parts = (tensor_digest(x) if isinstance(x, Tensor) else repr(x) for x in given)
    return sha256("\n".join(parts))


def _part(leaf: Any, rows: Any) -> Any:
    return leaf[rows] if isinstance(leaf, Tensor) else leaf


def _table(pairs: Sequence[Any]) -> tuple[list[Any] | None, Any]:
    """All samples as one tensor for each input and target, with how they are nested; None where
    they do not fit together. An input that is not given is None.
    """
    flat = [tree_flatten((args, () if y is None else y)) for args, y in pairs]
    leaves, spec = flat[0]
    same = all(other == spec for _, other in flat)
    sizes = [batch_size(args) for args, _ in pairs]
    if not same or not all(
        _fits(found, leaves, size) for (found, _), size in zip(flat, sizes, strict=True)
    ):
        return None, spec
    columns = zip(*(found for found, _ in flat), strict=True)
    return [torch.cat(c) if isinstance(c[0], Tensor) else c[0] for c in columns], spec


def _fits(found: Sequence[Any], first: Sequence[Any], size: int) -> bool:
    """Whether the leaves of a batch hold one sample for each row, of the shape of the first's."""
    return all(_alike(x, y, size) for x, y in zip(found, first, strict=True))


def _alike(x: Any, y: Any, size: int) -> bool:
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return x is None and y is None
    same = x.shape[1:] == y.shape[1:] and x.dtype == y.dtype
    return same and x.dim() > 0 and len(x) == size
