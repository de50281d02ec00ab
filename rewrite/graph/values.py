"""Walks over the nested values that models pass around, and where a tensor in them came from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import fx

from .scalars import is_traced, untraced


@dataclass(frozen=True, slots=True)
class PathStep:
    """One step into a nested value: an item, or an attribute of a dataclass."""

    key: Any
    attribute: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """The node whose value holds a tensor, and the steps that lead to it."""

    node: fx.Node
    steps: tuple[PathStep, ...] = ()


class OriginTable:
    """Tensor object -> origin. Holds no tensor alive, so a trace needs no more memory than a plain
    forward.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[weakref.ref[torch.Tensor], Origin]] = {}

    def __setitem__(self, tensor: torch.Tensor, origin: Origin) -> None:
        self._rows[id(tensor)] = (weakref.ref(tensor), origin)

    def get(self, tensor: torch.Tensor) -> Origin | None:
        row = self._rows.get(id(tensor))
        # An id is used again once its object has died, hence the second look.
        return row[1] if row is not None and row[0]() is tensor else None


def is_structure(value: object) -> bool:
    if isinstance(value, (tuple, list, dict)):
        return True
    return is_dataclass(value) and not isinstance(value, type)


def children(value: Any) -> Iterator[tuple[PathStep, Any]]:
    """The direct parts of a tuple, list, dict or dataclass; nothing for anything else."""
    if isinstance(value, dict):
        yield from ((PathStep(key), item) for key, item in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((PathStep(index), item) for index, item in enumerate(value))
    elif is_structure(value):
        yield from ((PathStep(f.name, True), getattr(value, f.name)) for f in fields(value))


def leaves(
    value: Any, steps: tuple[PathStep, ...] = ()
) -> Iterator[tuple[tuple[PathStep, ...], Any]]:
    """Every leaf of a nested value with the steps that lead to it."""
    if not is_structure(value):
        yield steps, value
        return
    for step, item in children(value):
        yield from leaves(item, (*steps, step))


def tensors(*values: Any) -> list[torch.Tensor]:
    """Every tensor in nested values, each object once."""
    found = (leaf for value in values for _, leaf in leaves(value))
    return list({id(leaf): leaf for leaf in found if isinstance(leaf, torch.Tensor)}.values())


def path_text(steps: tuple[PathStep, ...]) -> str:
    """Steps as Python would write them: `[0]`, `['logits']`, `.hidden`."""
    return "".join(f".{s.key}" if s.attribute else f"[{s.key!r}]" for s in steps)


def remake(value: Any, items: list[Any]) -> Any:
    """A structure like `value` with `items` in place of its direct parts, in the order of
    `children`.
    """
    if isinstance(value, dict):
        pairs = zip(value, items, strict=True)
        if type(value) is dict or is_dataclass(value):
            return type(value)(**dict(pairs)) if is_dataclass(value) else dict(pairs)
        return type(value)(pairs)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*items)
    if isinstance(value, (tuple, list)):
        return type(value)(items)
    names = (field.name for field in fields(value))
    return type(value)(**dict(zip(names, items, strict=True)))


def rebuild(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with `change` applied to every leaf; a structure in which nothing changes is returned
    as it is.
    """
    if isinstance(value, slice):
        return slice(change(value.start), change(value.stop), change(value.step))
    if not is_structure(value):
        return change(value)
    old = [item for _, item in children(value)]
    new = [rebuild(item, change) for item in old]
    if all(a is b for a, b in zip(old, new, strict=True)):
        return value
    return remake(value, new)


def without_traces(value: Any) -> Any:
    """`value` with traced numbers replaced by plain ones."""
    return rebuild(value, lambda leaf: untraced(leaf) if is_traced(leaf) else leaf)
