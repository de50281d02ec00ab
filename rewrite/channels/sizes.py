"""Settings of ops with numbers in place of the nodes that compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from ..ops.spec import TensorSpec


def known(value: Any) -> Any:
    """The number that a node gave when the model was captured."""
    return value.meta.get("val") if isinstance(value, fx.Node) else value


def settings(attrs: Mapping[str, Any], number: Callable[[Any], Any] = known) -> dict[str, Any]:
    """`attrs` with every node in them replaced by its number."""
    return {name: fx.node.map_aggregate(value, number) for name, value in attrs.items()}


def shape_at(value: Any) -> tuple[int, ...]:
    """The shape of a node's value; () for a number."""
    spec = known(value)
    return spec.shape if isinstance(spec, TensorSpec) else ()


def specs_of(node: fx.Node) -> list[TensorSpec | None]:
    """The results of a node, None for those that are no tensors."""
    value = node.meta.get("val")
    several = value if isinstance(value, (tuple, list)) else (value,)
    return [spec if isinstance(spec, TensorSpec) else None for spec in several]
