"""What each integer layer reads and gives when the model runs, and which codes its rounding may
give: a runtime that rounds in another order gives the neighbour of a code, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..graph.runs import own_inputs, watched
from ..runtime import int8
from ..runtime.layers import Int8Layer
from ..runtime.pooling import int8_interpolate, int8_max_pool
from ..runtime.recurrent import Int8LSTM
from ..runtime.rows import Int8LinearRows, quantize_rows
from .exportable import Exportable
from .qdq import grid_at, layer_at, max_pool, scales_of, spell
from .row_integers import exact_codes, exact_numbers, spell_rows

_SPELLED: dict[Any, Any] = {int8_max_pool: max_pool, int8_interpolate: F.interpolate}
"""Ops on codes that ONNX has for codes, too."""

_ROUNDING = 2.0**-20
"""Of the largest sum that a layer may reach: what arithmetic in float32 loses."""


_STEEPEST = 1.5
"""By how much an activation may stretch a difference: hardswish does at 3."""


def in_codes(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8


@dataclass(frozen=True, slots=True)
class Tap:
    """A node that makes codes or numbers of codes, what it reads in the model and what it gives
    there. `made_by` is its layer, or scale and zero point of a `quantize`; None: `quantize_rows`.
    """

    node: fx.Node
    read: tuple[fx.Node, ...]
    made_by: Int8Layer | tuple[float, int] | None
    given: tuple[Tensor, ...]
    wanted: Tensor

    @property
    def in_codes(self) -> bool:
        return in_codes(self.wanted)

    def wrong(self, found: Tensor) -> Tensor:
        """Which results no rounding gives."""
        exact, slack = _exact(self.made_by, self.given)
        nearest, half = (exact.clamp(0, 255), 0.5) if self.in_codes else (exact, 0.0)
        return ~((found.double() - nearest).abs() <= slack + half)


@dataclass(frozen=True, slots=True)
class Named:
    """A layer, what it reads and what it gives by the names of a file."""

    tap: Tap
    read: tuple[str, ...]
    gives: str


def spelled(given: Exportable) -> list[Tap]:
    """Puts the form of ONNX in place of every integer layer. Raises A040 for those without one."""
    module = given.module
    _require_forms(given)
    read = {node: _read(node) for node in module.graph.nodes if _makes(module, node)}
    values = _values(given, {*read, *(n for nodes in read.values() for n in nodes)})
    scales = scales_of(module, {node for node, value in values.items() if in_codes(value)})
    taps = []
    for node, nodes in read.items():
        layer, tensors = layer_at(module, node), tuple(values[n] for n in nodes)
        _require_float32(given, node, tensors[0] if layer is None else layer.scale)
        made_by = layer or _grid(node)
        taps.append(Tap(node, nodes, made_by, tensors, values[node]))
        if made_by is None or isinstance(layer, Int8LinearRows):
            spell_rows(module, node)
        else:
            spell(module, node, scales)
    for node in (n for n in module.graph.nodes if n.target in _SPELLED):
        node.target = _SPELLED[node.target]
        node.meta.pop("is_wrapped", None)  # how torch.fx knows the other one by name
    module.recompile()
    return taps


def _makes(module: fx.GraphModule, node: fx.Node) -> bool:
    makes_codes = node.target in (int8.quantize, quantize_rows)
    return makes_codes or layer_at(module, node) is not None


def _grid(node: fx.Node) -> tuple[float, int] | None:
    """Scale and zero point of `quantize`; `quantize_rows` has none that stand in the model."""
    if node.target is quantize_rows:
        return None
    grid = grid_at(node)
    return int8.single(grid["scale"]), grid["zero"]


def _read(node: fx.Node) -> tuple[fx.Node, ...]:
    """The same one twice where a layer adds what it reads."""
    return tuple(n for n in (*node.args, *node.kwargs.values()) if isinstance(n, fx.Node))


def _values(given: Exportable, wanted: set[fx.Node]) -> dict[fx.Node, Tensor]:
    """What these nodes give in the model; of other codes an empty tensor."""
    values: dict[fx.Node, Tensor] = {}

    def seen(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor) and (node in wanted or in_codes(value)):
            values[node] = value.clone() if node in wanted else value.new_empty(0)

    if wanted:
        watched(given.module, own_inputs(given.args), seen)
    return values


def _require_forms(given: Exportable) -> None:
    for node in given.module.graph.find_nodes(op="call_module"):
        if isinstance(given.module.get_submodule(str(node.target)), Int8LSTM):
            raise given.refused(
                f"`{node.target}` is an LSTM in integers, which ONNX has no form for",
                help="write .pt2, or leave the rule out that made it",
            )


def _require_float32(given: Exportable, node: fx.Node, numbers: Tensor) -> None:
    if numbers.dtype == torch.float64:
        raise given.refused(
            f"`{node.name}` makes codes of float64, which QuantizeLinear does not take",
            help="export the float32 model, or write .pt2",
        )


def _exact(
    made_by: Int8Layer | tuple[float, int] | None, given: Sequence[Tensor]
) -> tuple[Tensor, Tensor | float]:
    """What is made in real arithmetic, and how far away a result may be before it is rounded."""
    if made_by is None:
        return exact_codes(*given)
    if isinstance(made_by, Int8LinearRows):
        return exact_numbers(made_by, *given)
    return (
        _of_layer(made_by, given) if isinstance(made_by, Int8Layer) else _of_codes(made_by, *given)
    )


def _of_layer(layer: Int8Layer, given: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Its results in real arithmetic, in codes where it gives codes, and how far away from them a
    result may be before it is rounded.
    """
    products = layer.scale.double()
    largest = 255 * products * layer.weight.double().flatten(1).abs().sum(1)
    if layer.bias is not None:
        largest = largest + layer.bias.double().abs()
    if len(given) > 1:
        largest = largest + 255 * layer.other_scale
    slack = _STEEPEST * (products / 2 + _ROUNDING * largest)  # the bias is whole products
    exact, slack = layer.exact(*given), slack.reshape(-1, *[1] * (layer.weight.dim() - 2))
    if layer.output_scale is None:
        return exact, slack
    return exact / layer.output_scale + layer.output_zero, slack / layer.output_scale


def _of_codes(grid: tuple[float, int], x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double() / grid[0] + grid[1], 256 * torch.tensor(_ROUNDING)
