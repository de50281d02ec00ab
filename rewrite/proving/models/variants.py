"""The inputs of a grown model made otherwise: another batch, other extents, large and small
numbers, numbers at the borders of comparisons.

A rewritten model must be right on all that the original takes, not on inputs like the example's
alone: a size of the example that became a setting, or an exponential that overflows, shows nowhere
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 1e4
"""Magnitude up to which finite inputs are tried; what a verdict says of large numbers."""

SMALLEST = 1e-4
"""All numbers of an input are about as small as this in one try: there 1 - exp(x) loses digits."""

BORDERS = (0.0, 1.0, -1.0, 6.0, -0.0, 3.0, -3.0, 0.5)
"""Numbers at which functions bend and comparisons turn."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Inputs, and what their numbers are; "" where their sizes are others than the example's."""

    numbers: str
    inputs: tuple[Tensor, ...]


def variants(inputs: Sequence[Tensor], seed: int) -> Iterator[Variant]:
    """Other inputs of the same model: one more sample, one more along another axis, and numbers of
    one kind. Which axis and which kind comes from `seed`. The original need not take them.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = sorted({axis for value in inputs for axis in range(1, value.dim())})
    free = axes[seed % len(axes) :][:1] if axes else []
    for axis in (0, *free):
        longer = _longer(inputs, axis, generator)
        if longer is not None:
            yield Variant("", longer)
    if any(value.is_floating_point() for value in inputs):
        name = tuple(_NUMBERS)[seed % len(_NUMBERS)]
        yield Variant(name, tuple(_NUMBERS[name](value, generator) for value in inputs))


# -- sizes -----------------------------------------------------------------------------------------


def longer(inputs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """One more along each axis in turn. The original need not take them."""
    generator = torch.Generator().manual_seed(0)
    for axis in range(max((value.dim() for value in inputs), default=0)):
        found = _longer(inputs, axis, generator)
        if found is not None:
            yield found


def _longer(
    inputs: Sequence[Tensor], axis: int, generator: torch.Generator
) -> tuple[Tensor, ...] | None:
    """One more along an axis, in all inputs that are as long there as the first that has it."""
    size = next((value.shape[axis] for value in inputs if value.dim() > axis), 0)
    if not size:
        return None
    return tuple(
        _one_more(value, axis, generator)
        if value.dim() > axis and value.shape[axis] == size
        else value
        for value in inputs
    )


def _one_more(value: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    """New numbers; whole ones, which may be indices, are those of the example again."""
    size = value.shape[axis] + 1
    if not value.is_floating_point():
        return value.index_select(axis, torch.arange(size) % (size - 1))
    shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
    return torch.randn(shape, generator=generator).to(value.dtype)


# -- numbers ---------------------------------------------------------------------------------------


def _large(value: Tensor, generator: torch.Generator) -> Tensor:
    """Magnitudes from 1 to the largest, as many of each. float16 ends at 65,504: there the sums
    inside may overflow on either side, and neither is wrong.
    """
    if not value.is_floating_point() or value.dtype == torch.float16:
        return value
    exponent = 4 * torch.rand(value.shape, generator=generator)
    sign = torch.where(torch.rand(value.shape, generator=generator) < 0.5, -1.0, 1.0)
    return (sign * 10**exponent).to(value.dtype)


def _small(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    return (SMALLEST * torch.randn(value.shape, generator=generator)).to(value.dtype)


def _at_borders(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    index = torch.randint(len(BORDERS), value.shape, generator=generator)
    return torch.tensor(BORDERS)[index].to(value.dtype)


_NUMBERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    f"numbers up to {LARGEST:g}": _large,
    f"numbers of {SMALLEST:g}": _small,
    "numbers at borders": _at_borders,
}
