"""A matched op in words: its inputs, its settings, what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from .call import OpCall, tensor_at


def weights_of(call: OpCall) -> Iterator[tuple[str, Tensor]]:
    """The parameters that a matched op has, by declared name."""
    for name, path in call.params.items():
        if path is not None:
            yield name, tensor_at(call.root, path)


def call_text(call: OpCall, about: str = "") -> str:
    """`conv2d([1, 2, 5, 5], padding = 1, no bias)`: what differs from an op's defaults, and the
    weights that the condition `about` speaks of.
    """
    given = [name for name, value in call.params.items() if value is not None]
    usual = call.op.fill({}, [*(spec.name for spec in call.op.inputs), *given])
    parts = [_value(value) for value in call.inputs if value is not None]
    parts += [f"{n} = {_plain(v)}" for n, v in call.attrs.items() if v != usual.get(n)]
    parts += [f"{n} {_range(weight)}" for n, weight in weights_of(call) if f".{n}" in about]
    parts += [f"no {name}" for name, path in call.params.items() if path is None]
    return f"{call.op.name}({', '.join(parts)})"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))})"
    if not isinstance(value, fx.Node):
        return _plain(value)
    spec = value.meta["val"]
    kind = "" if getattr(spec, "dtype", torch.float32) == torch.float32 else f" {spec.dtype}"
    held = "constant " if value.op == "get_attr" else ""
    return f"{held}{list(getattr(spec, 'shape', ()))}{kind.replace('torch.', '')}"


def _plain(value: Any) -> str:
    if isinstance(value, tuple) and value and all(item == value[0] for item in value):
        value = value[0]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _range(weight: Tensor) -> str:
    """The shape of a weight, and between which numbers its elements lie."""
    if not weight.numel():
        return str(list(weight.shape))
    low, high = float(weight.min()), float(weight.max())
    span = f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"
    return f"{list(weight.shape)} {span}"
