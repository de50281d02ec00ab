"""The axes of the tensors in a call, by the names that the model's forward gives them, and calls at
other sizes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.values import PathStep, leaves, path_text
from .inputs import Case, laid_out_as


@dataclass(frozen=True, slots=True)
class CallAxis:
    """One axis of a tensor in a call: the parameter of forward and the steps that lead to the
    tensor.
    """

    parameter: str
    steps: tuple[PathStep, ...]
    axis: int
    size: int
    tensor: Tensor = field(repr=False, compare=False)

    @property
    def input(self) -> str:
        return self.parameter + path_text(self.steps)

    def is_batch(self, size: int | None) -> bool:
        return self.axis == 0 and self.size == size

    def __str__(self) -> str:
        return f"axis {self.axis} of `{self.input}`"


@dataclass(frozen=True, slots=True)
class Group:
    """Axes that have one size and vary together, and another size for them."""

    axes: tuple[CallAxis, ...]
    size: int

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.axes))} at {self.size}"


def call_parts(
    forward: Callable[..., Any], case: Case
) -> Iterator[tuple[str, tuple[PathStep, ...], Any]]:
    """Every leaf of a call: its parameter of forward (or name among `**kwargs`), the steps that
    lead to it, and what it is.
    """
    for name, value in named_values(forward, case):
        for steps, leaf in leaves(value):
            yield name, steps, leaf


def named_values(forward: Callable[..., Any], case: Case) -> Iterator[tuple[str, Any]]:
    """What a call gives, by the names that the inputs of its graph have."""
    signature = inspect.signature(forward)
    for name, value in signature.bind(*case.args, **case.kwargs).arguments.items():
        spread = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        yield from value.items() if spread else ((name, value),)


def call_axes(model: nn.Module, case: Case) -> list[CallAxis]:
    return [
        CallAxis(name, steps, axis, size, leaf)
        for name, steps, leaf in call_parts(model.forward, case)
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_nested
        for axis, size in enumerate(leaf.shape)
    ]


def resized(case: Case, groups: Iterable[Group]) -> Case:
    """The case at other sizes: what is there is repeated, or left off at the end."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    for group in groups:
        for axis in group.axes:
            wanted.setdefault(id(axis.tensor), []).append((axis.axis, group.size))

    def change(leaf: Any) -> Any:
        changed = leaf
        for axis, size in wanted.get(id(leaf), ()):
            changed = changed.index_select(axis, torch.arange(size) % leaf.shape[axis])
        return leaf if changed is leaf else laid_out_as(leaf, changed)

    return case.map(change, "; ".join(map(str, groups)))
