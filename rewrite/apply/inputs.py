"""Inputs to compare two sides on: random, as small as the ops at a site allow, or recorded where
they must be real.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from ..ops.spec import TensorSpec
from ..rules.state import State

TRIES = 2
"""Random draws for each application: one from the normal distribution, one that spans magnitudes.
"""


SIZES = (5, 9)
"""Extents to try for the free axes: wide enough for two windows of the largest kernel, then wider.
"""

FREE = (1, 2, 0)
"""Which of three axes to make shorter: those of a sequence of vectors, those of a signal, none but
the batch. Weights fix one of them, which only running the ops tells.
"""

KEPT = 100_000
"""Draws with more numbers than this are made again at each site instead of being kept."""

SHAPES = 100
"""Draws are kept for so many combinations of shapes."""

STRANGE = (torch.nan, torch.inf, -torch.inf)
FEW = 200
"""With fewer numbers than this, chance may place no strange one among them."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One value for each input of a site, floating ones in float64."""

    values: dict[fx.Node, Any]
    small: bool

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        tensors = [v for v in self.values.values() if isinstance(v, torch.Tensor) and v.dim()]
        return max((int(v.shape[0]) for v in tensors), default=1)


class _Full(NamedTuple):
    """Type and shape of a draw of full size."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def probes(
    state: State,
    inputs: Sequence[fx.Node],
    *,
    small: bool = True,
    special: bool = False,
    codes: Container[fx.Node] = (),
) -> Iterator[list[Probe]]:
    """Draws for the inputs of a site, the smallest first and one of full size last. Integers
    (indices, masks) are recorded from the model, random ones may be illegal; the others have as
    many samples then. Of `codes`, bytes that stand for numbers, all are legal.

    `small`: with shorter free axes first. `special`: with infinities and nan among the values,
    which only ops that compute element by element leave where they are.
    """
    tensors = [node for node in inputs if isinstance(node.meta.get("val"), TensorSpec)]
    whole = [node for node in tensors if not node.meta["val"].dtype.is_floating_point]
    real = [node for node in whole if node not in codes]
    if small and not real and len(tensors) == len(inputs):
        for size in _sizes([node.meta["val"].shape for node in tensors]):
            yield _known(state, tensors, size, special)
    seen = state.samples.values(state.module, tensors) if real else {}
    recorded = {node: seen[node] for node in real}
    shapes = {node: tuple(value.shape) for node, value in seen.items()}
    yield _drawn(state.seed, tensors, recorded, None, special, shapes)


@dataclass(frozen=True, slots=True)
class _Small:
    """A size for free axes, which of three axes is one (0 if none is), and the axes at which every
    input is 1, so that they may well be a batch, or extents, of one.
    """

    size: int
    free: int
    ones: frozenset[int] = frozenset()


def _sizes(shapes: Sequence[Sequence[int]]) -> Iterator[_Small]:
    """What to try, the smallest first; axes of one are varied where the ops take more."""
    rows = any(len(shape) == 3 for shape in shapes)
    ones = _ones(shapes)
    for several in dict.fromkeys((ones, frozenset())):
        for free in FREE if rows else FREE[:1]:
            for size in SIZES if free or not rows else SIZES[:1]:
                yield _Small(size, free, several)


def _ones(shapes: Sequence[Sequence[int]]) -> frozenset[int]:
    """The axes at which all are 1; none where they have other numbers of axes or one alone."""
    ranks = {len(shape) for shape in shapes}
    if len(ranks) != 1 or min(ranks) < 2:
        return frozenset()
    return frozenset(axis for axis in range(min(ranks)) if all(s[axis] == 1 for s in shapes))


def _known(state: State, tensors: Sequence[fx.Node], size: _Small, special: bool) -> list[Probe]:
    """Small draws depend on shapes and seed alone, so that sites of the same shapes share them."""
    key = (tuple(node.meta["val"] for node in tensors), size, special)
    kept = state.known_probes.get(key)
    if kept is None:
        kept = [
            [probe.values[node] for node in tensors]
            for probe in _drawn(state.seed, tensors, {}, size, special)
        ]
        small = sum(value.numel() for values in kept for value in values) <= KEPT
        if small and len(state.known_probes) < SHAPES:
            state.known_probes[key] = kept
    return [Probe(dict(zip(tensors, values, strict=True)), True) for values in kept]


def _drawn(
    seed: int,
    tensors: Sequence[fx.Node],
    recorded: dict[fx.Node, Any],
    size: _Small | None,
    special: bool,
    shapes: dict[fx.Node, tuple[int, ...]] | None = None,
) -> list[Probe]:
    """`shapes`: those of values that are not as the example has them."""
    generator = torch.Generator().manual_seed(seed)
    full = {node: _Full(node.meta["val"].dtype, node.meta["val"].shape) for node in tensors}
    full |= {node: _Full(full[node].dtype, shape) for node, shape in (shapes or {}).items()}
    first, second = [_draw(full, recorded, generator, size) for _ in range(TRIES)]
    fixed = {*recorded, *(n for n, v in first.values.items() if not v.is_floating_point())}
    more = _strange(first, fixed) if special else []
    if _in_one(tensors, fixed, first):
        return [_both(first, generator, special), *more]
    return [first, _spread_out(second, fixed, generator, special), *more]


def _strange(draw: Probe, fixed: Container[fx.Node]) -> list[Probe]:
    """Where an input has few numbers: every drawn one is nan, then infinite, then minus infinite.

    `x * 0` is 0 for all other numbers, and a vector of five may have been drawn without these.
    """
    drawn = {node: value for node, value in draw.values.items() if node not in fixed}
    if all(value.numel() >= FEW for value in drawn.values()):
        return []
    return [
        Probe(
            {**draw.values, **{n: torch.full_like(v, kind) for n, v in drawn.items()}}, draw.small
        )
        for kind in STRANGE
    ]


def _in_one(tensors: Sequence[fx.Node], fixed: Collection[fx.Node], draw: Probe) -> bool:
    """Whether samples of both kinds can share a batch, which halves the work.

    They cannot where an input has no second sample, or where the spread ones would overflow in the
    model's own precision and hide the normal ones.
    """
    if fixed:
        return False
    wide = all(torch.finfo(node.meta["val"].dtype).max > 1e30 for node in tensors)
    return wide and all(v.dim() > 1 and v.shape[0] > 1 for v in draw.values.values())


def _both(draw: Probe, generator: torch.Generator, special: bool) -> Probe:
    """One batch with a normal first half; the rest spans magnitudes."""
    values = {}
    for node, value in draw.values.items():
        half = value.shape[0] // 2
        values[node] = torch.cat([value[:half], _spread(value[half:], generator, special)])
    return Probe(values, draw.small)


def _spread_out(
    draw: Probe, fixed: Container[fx.Node], generator: torch.Generator, special: bool
) -> Probe:
    spread = {
        node: _spread(value, generator, special)
        for node, value in draw.values.items()
        if node not in fixed
    }
    return Probe({**draw.values, **spread}, draw.small)


def _spread(value: torch.Tensor, generator: torch.Generator, special: bool) -> torch.Tensor:
    """Normal values times 0.1 to 30, a tenth of them zero: a bound of 6 or a division by zero must
    not go unseen.
    """
    kind = torch.rand(value.shape, generator=generator, dtype=torch.float64)
    value = value * 10 ** (
        2.5 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1
    )
    value = torch.where(kind < 0.1, 0.0, value)
    for number, found in enumerate(STRANGE if special else (), start=1):
        value = torch.where(
            (kind > 1 - 0.05 * number) & (kind <= 1.05 - 0.05 * number), found, value
        )
    return value


def _draw(
    full: Mapping[fx.Node, _Full],
    recorded: dict[fx.Node, Any],
    generator: torch.Generator,
    size: _Small | None,
) -> Probe:
    values = {
        node: recorded[node] if node in recorded else _random(one, generator, size)
        for node, one in full.items()
    }
    return Probe(values, size is not None)


def _random(full: _Full, generator: torch.Generator, size: _Small | None) -> torch.Tensor:
    shape = full.shape if size is None else _shrunk(full.shape, size)
    if not full.dtype.is_floating_point:
        return torch.randint(256, shape, generator=generator, dtype=full.dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _shrunk(shape: Sequence[int], small: _Small) -> tuple[int, ...]:
    """Another batch, and other extents of the free axes, of about `small.size`; channels stay,
    weights fix them: those behind the batch, of three axes the one that is not free. An empty
    batch would show nothing.

    No size that varies is the one of the example: a number that a rule took from there would go
    unseen. Equal extents stay equal, so that inputs which are added together still fit.
    """
    if len(shape) < 2:
        return tuple(shape)
    free = range(2, len(shape)) if len(shape) > 3 else (small.free,) if len(shape) == 3 else ()
    rest = [_other(n, small.size) if at in free else n for at, n in enumerate(shape)]
    rest[0] = 1 if shape[0] == 1 else 3 if shape[0] == 2 else 2
    return tuple(2 if at in small.ones and at in (0, *free) else n for at, n in enumerate(rest))


def _other(extent: int, size: int) -> int:
    """A small extent is doubled, which strides and halves still divide; 1 may be broadcast."""
    return extent if extent == 1 else size if extent > size else 2 * extent
