"""Batches of what the user gave: as arguments of a model, and parts of them.

A batch is `(x, y)`, `(x,)`, a tensor `x` alone, or a mapping of inputs by name, where what the
model does not take is the target. `x` is a tensor, a tuple of positional inputs, or a mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...grammar.diagnostics import Label, fail
from ..torch_internals import tree_map

Batches = Sequence[Any]
"""Batches as the user gave them."""

Pairs = Sequence[tuple[tuple[Any, ...], Any]]
"""The positional arguments and the target of each batch."""


@dataclass(frozen=True)
class Taken:
    """What a graph takes: its inputs by name and in order, with the defaults of those that have
    one, and an example of them. `unplaced`: the input in front of those that go by name only.
    """

    names: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    example: tuple[Any, ...] = ()
    unplaced: str = ""

    def pair(self, batch: Any) -> tuple[tuple[Any, ...], Any]:
        """Positional arguments and the target of a batch. Raises D007 where it does not fit."""
        if isinstance(batch, Mapping):
            known = (
                batch if self._as_one(batch) else {k: batch[k] for k in self.names if k in batch}
            )
            rest = [batch[key] for key in batch if key not in known]
            return self.args(known), rest[0] if len(rest) == 1 else tuple(rest) or None
        if not isinstance(batch, (tuple, list)):
            return (batch,), None
        if len(batch) not in (1, 2):
            raise _unfit(f"it is a {type(batch).__name__} of {len(batch)}, not (x, y)")
        return self.args(batch[0]), batch[1] if len(batch) == 2 else None

    def args(self, x: Any) -> tuple[Any, ...]:
        """The inputs of a batch as positional arguments. Raises D007."""
        if isinstance(x, Mapping):
            return (dict(x),) if self._as_one(x) else self._named(x)
        if self.unplaced:
            known = ", ".join(self.names[self.names.index(self.unplaced) + 1 :])
            raise _unfit(f"it gives inputs by position, and the example gives {known} by name")
        alone = isinstance(x, list) and self.example and isinstance(self.example[0], list)
        if alone and not isinstance(x[0] if x else None, list):
            return (x,)
        return tuple(x) if isinstance(x, (tuple, list)) else (x,)

    def _as_one(self, x: Mapping[str, Any]) -> bool:
        """Whether a mapping is itself an input of the model, not inputs by their names."""
        if self.example and isinstance(self.example[0], Mapping):
            return self.example[0].keys() <= x.keys()
        return not any(name in x for name in self.names)

    def _named(self, x: Mapping[str, Any]) -> tuple[Any, ...]:
        wrong = [repr(key) for key in x if key not in self.names]
        last = max(self.names.index(key) for key in x if key in self.names)
        given = {**self.defaults, **x}
        wrong += [f"no {name!r}" for name in self.names[: last + 1] if name not in given]
        if wrong:
            known = ", ".join(name for name in self.names if name != self.unplaced)
            raise _unfit(f"it gives {', '.join(wrong)}; the model takes {known}")
        return tuple(given[name] for name in self.names[: last + 1])


def _unfit(note: str) -> Exception:
    hint = "give batches (x, y): x as the example inputs are given, a tuple or a dict by name"
    return fail(
        "D007", "a batch of the data does not fit the model", Label(None), note=note, help=hint
    )


def counted(target: Any, args: tuple[Any, ...]) -> int:
    """How many samples a batch has: its targets, where they can be counted."""
    countable = isinstance(target, (Tensor, list)) and (
        not isinstance(target, Tensor) or target.dim()
    )
    return len(target) if countable else batch_size(args)


def first(batches: Iterable[Any], count: int, size_of: Callable[[Any], int]) -> Batches:
    """The first `count` samples; the last batch is cut, and none behind it is asked for."""
    out: list[Any] = []
    for batch in batches if count > 0 else ():
        size = size_of(batch)
        take = min(size, count)
        out.append(batch if take == size else part(batch, size, take))
        count -= take
        if count <= 0:
            break
    return out


def part(value: Any, size: int, stop: int, start: int = 0) -> Any:
    """The samples from `start` to `stop` of a batch of `size`."""

    def cut(t: Any) -> Any:
        if isinstance(t, Mapping):  # one that is no dict
            return part(dict(t), size, stop, start)
        return t[start:stop] if isinstance(t, Tensor) and t.dim() and t.shape[0] == size else t

    return tree_map(cut, value)


def is_batched(args: tuple[Any, ...]) -> bool:
    """Samples lie along axis 0. Where all inputs are vectors that axis may be one of features: a
    model that takes 33 of them takes neither 32 nor 66, so that such a batch is one sample.
    """
    return any(t.dim() > 1 for t in _tensors(args))


def batch_size(args: tuple[Any, ...]) -> int:
    return next((int(t.shape[0]) for t in _tensors(args) if t.dim() > 1), 1)


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The inputs that are tensors, or values of one that is a mapping. A list of tensors holds the
    samples themselves, which have no axis for them.
    """
    for value in args:
        parts = value.values() if isinstance(value, Mapping) else (value,)
        yield from (part for part in parts if isinstance(part, Tensor))


def pieces(args: tuple[Any, ...], y: Any, most: int) -> Iterator[tuple[Any, Any]]:
    """A batch in parts of `most` samples."""
    size = batch_size(args)
    for at in range(0, size, most):
        stop = min(at + most, size)
        yield part(args, size, stop, at), part(y, size, stop, at)
