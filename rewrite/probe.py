"""Inputs to compare two sides on: random, as small as the ops at a site allow, or recorded where they must be real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .local import run_nodes
from .spec import TensorSpec
from .state import State

TRIES = 2
"""Random draws for each application."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One value for each input of a site, floating ones in float64."""

    values: dict[fx.Node, Any]
    small: bool


def probes(state: State, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> list[Probe]:
    """Inputs for the matched `nodes`. Integers (indices, masks) are recorded from the model: random ones may be illegal."""
    tensors = [node for node in inputs if isinstance(node.meta.get("val"), TensorSpec)]
    real = [node for node in tensors if not node.meta["val"].dtype.is_floating_point]
    recorded = state.samples.values(state.module, real) if real else {}
    computed = any(node not in tensors for node in inputs)
    generator = torch.Generator().manual_seed(state.seed)
    draws = []
    for size in () if real or computed else _sizes(nodes):
        draws = [_draw(tensors, recorded, generator, size) for _ in range(TRIES)]
        if _runs(state, nodes, draws[0]):
            return draws
    return [_draw(tensors, recorded, generator, None) for _ in range(TRIES)]


def _sizes(nodes: Sequence[fx.Node]) -> tuple[int, ...]:
    """Extents to try for the free axes: wide enough for two windows of the largest kernel, then wider."""
    return (4, 9) if nodes else ()


def _draw(tensors: Sequence[fx.Node], recorded: dict[fx.Node, Any], generator: torch.Generator, size: int | None) -> Probe:
    values = {node: recorded[node] if node in recorded else _random(node.meta["val"], generator, size) for node in tensors}
    return Probe(values, size is not None)


def _random(spec: TensorSpec, generator: torch.Generator, size: int | None) -> torch.Tensor:
    shape = spec.shape if size is None else _shrunk(spec.shape, size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _shrunk(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """The batch axis becomes 2 and the axes behind the channels at most `size`; channels stay, weights fix them.

    Equal extents shrink to equal extents, so that inputs which are added together still fit.
    """
    if len(shape) < 2:
        return tuple(shape)
    return (min(shape[0], 2), shape[1], *(min(extent, size) for extent in shape[2:])) if len(shape) > 3 else (min(shape[0], 2), *shape[1:])


def _runs(state: State, nodes: Sequence[fx.Node], probe: Probe) -> bool:
    """Whether the matched nodes accept such inputs: a kernel larger than the image does not."""
    try:
        run_nodes(state.module, nodes, dict(probe.values), {}, torch.float64)
    except (RuntimeError, ValueError, IndexError):
        return False
    return True
