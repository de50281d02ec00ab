"""What mutants call: functions that spoil the numbers of a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Weight = Any
"""A tensor; a number or None passes for the weight that it stands for."""


def _doubled(w: Weight) -> Weight:
    return None if w is None else 2 * w


def _negated(w: Weight) -> Weight:
    return None if w is None else -w


def _positive(w: Weight) -> Weight:
    return None if w is None else abs(w)


def _flipped(w: Weight) -> Weight:
    """The other way round along the first axis that has two ends."""
    return w.flip(_long(w)[0]) if isinstance(w, Tensor) and _long(w) else w


def _mirrored(w: Weight) -> Weight:
    """The other way round along the last axis that has two ends."""
    return w.flip(_long(w)[-1]) if isinstance(w, Tensor) and _long(w) else w


def _long(w: Tensor) -> list[int]:
    return [axis for axis, size in enumerate(w.shape) if size > 1]


def _transposed(w: Weight) -> Weight:
    return w.transpose(0, 1) if isinstance(w, Tensor) and w.dim() > 1 else w


def _half(w: Weight) -> Weight:
    return w.half().to(w.dtype) if isinstance(w, Tensor) else w


def _bfloat16(w: Weight) -> Weight:
    return w.bfloat16().to(w.dtype) if isinstance(w, Tensor) else w


def _eighth(w: Weight) -> Weight:
    return w.to(torch.float8_e5m2).to(w.dtype) if isinstance(w, Tensor) else w


def _reversed(items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(items)[::-1]


MUTATION_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        _doubled, _negated, _positive, _flipped, _mirrored, _transposed, _half, _bfloat16,
        _eighth, _reversed,
    )
}  # fmt: skip
"""What only mutants call. No rule can: their names are in no declaration."""
