"""What a graph node's value looks like, without keeping the value."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import torch


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def spec_of(value: object) -> object:
    """`value` with every tensor replaced by its `TensorSpec`; structure and plain scalars are
    kept.
    """
    if isinstance(value, TensorSpec):
        return value
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(int(size) for size in value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: spec_of(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [spec_of(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: spec_of(getattr(value, field.name)) for field in fields(value)}
    return _plain(value)


def _plain(value: object) -> object:
    """Traced numbers are subclasses of int and float; the graph keeps only the number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, float) else value
