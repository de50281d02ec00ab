"""Shapes of what an op reads: a spec, a number, or (variadic inputs) a tuple of those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .dims import Scope, Shape, ShapeSpec
from .spec import TensorSpec


def spec_leaves(value: Any) -> list[Any]:
    """The specs and numbers in a value, in order; none for None."""
    if value is None:
        return []
    return (
        [leaf for item in value for leaf in spec_leaves(item)]
        if isinstance(value, tuple)
        else [value]
    )


def one_float(values: Iterable[Any]) -> torch.dtype | None:
    """The floating type that all tensors among the specs have; None where they have no such one."""
    leaves = [leaf for value in values for leaf in spec_leaves(value)]
    found = {leaf.dtype if isinstance(leaf, TensorSpec) else type(leaf) for leaf in leaves}
    found -= {bool, int, float}
    dtype = next(iter(found), None)
    if len(found) != 1 or not isinstance(dtype, torch.dtype):
        return None
    return dtype if dtype.is_floating_point else None


def shape_of(spec: Any) -> Any:
    """The shape; () for a number, None for None, a tuple of shapes for several."""
    if isinstance(spec, TensorSpec):
        return spec.shape
    if isinstance(spec, tuple):
        return tuple(shape_of(item) for item in spec)
    return None if spec is None else ()


def each_shape(shape: Any) -> list[Shape]:
    """What `shape_of` gave, as a list of shapes."""
    if shape is None:
        return []
    several = shape and all(isinstance(item, tuple) for item in shape)
    return list(shape) if several else [shape]


def with_result(scope: Scope, output: ShapeSpec | None) -> Scope:
    """The scope with the shape of the first result, where the declaration and the inputs say it."""
    if output is None or not output.names <= scope.keys():
        return scope
    return {**scope, "result": output.evaluate(scope)}


def on_meta(specs: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors without memory in place of the specs."""
    return {name: _on_meta(spec) for name, spec in specs.items()}


def _on_meta(spec: Any) -> Any:
    if isinstance(spec, tuple):
        return tuple(_on_meta(item) for item in spec)
    if isinstance(spec, TensorSpec):
        return torch.empty(spec.shape, dtype=spec.dtype, device="meta")
    return spec
