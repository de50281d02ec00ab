"""Batches of what the user gave: as arguments of a model, and parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

Batches = Sequence[tuple[Any, Any]]


def as_args(x: Any) -> tuple[Any, ...]:
    """A batch's inputs as positional arguments."""
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def first(batches: Batches, count: int) -> Batches:
    """The first `count` samples; the last batch is cut."""
    out: list[tuple[Any, Any]] = []
    for x, y in batches:
        size = batch_size(as_args(x))
        if count <= 0:
            break
        take = min(size, count)
        whole = take == size
        out.append((x, y) if whole else (part(x, size, take), part(y, size, take)))
        count -= take
    return out


def part(value: Any, size: int, stop: int, start: int = 0) -> Any:
    """The samples from `start` to `stop` of a batch of `size`."""

    def cut(t: Any) -> Any:
        return t[start:stop] if isinstance(t, Tensor) and t.dim() and t.shape[0] == size else t

    return tree_map(cut, value)


def is_batched(args: tuple[Any, ...]) -> bool:
    """Samples lie along axis 0. Where all inputs are vectors that axis may be one of features: a
    model that takes 33 of them takes neither 32 nor 66, so that such a batch is one sample.
    """
    return any(isinstance(t, Tensor) and t.dim() > 1 for t in args)


def batch_size(args: tuple[Any, ...]) -> int:
    if not is_batched(args):
        return 1
    return next(int(t.shape[0]) for t in args if isinstance(t, Tensor) and t.dim() > 1)


def pieces(x: Any, y: Any, most: int) -> Iterator[tuple[Any, Any]]:
    """A batch in parts of `most` samples."""
    size = batch_size(as_args(x))
    for at in range(0, size, most):
        stop = min(at + most, size)
        yield part(x, size, stop, at), part(y, size, stop, at)
