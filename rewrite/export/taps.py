"""What each integer layer reads and gives when the model runs, and which codes its rounding may
give: a runtime that rounds in another order gives the neighbour of a code, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ..graph.runs import own_inputs, watched
from ..runtime import int8
from ..runtime.layers import Int8Layer
from ..runtime.pooling import int8_max_pool
from .exportable import Exportable
from .qdq import grid_at, layer_at, max_pool, scales_of, spell

_ROUNDING = 2.0**-20
"""Of the largest sum that a layer may reach: what arithmetic in float32 loses."""


def in_codes(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8


@dataclass(frozen=True, slots=True)
class Tap:
    """One layer on what it reads in the model: `exact` are its results in real arithmetic, in
    codes where it gives codes, and a result may be `slack` away from them before it is rounded.
    """

    label: str
    read: tuple[fx.Node, ...]
    node: fx.Node
    given: tuple[Tensor, ...]
    wanted: Tensor
    exact: Tensor
    slack: Tensor

    @property
    def in_codes(self) -> bool:
        return in_codes(self.wanted)

    def wrong(self, found: Tensor) -> Tensor:
        """Which results no rounding gives."""
        nearest = self.exact.clamp(0, 255) if self.in_codes else self.exact
        apart = (found.double() - nearest).abs()
        return ~(apart <= self.slack + (0.5 if self.in_codes else 0.0))


@dataclass(frozen=True, slots=True)
class Named:
    """A layer, what it reads and what it gives by the names of a file."""

    tap: Tap
    read: tuple[str, ...]
    gives: str


def spelled(given: Exportable) -> list[Tap]:
    """Puts the form of ONNX in place of every integer layer. Raises A040 for those without one."""
    module = given.module
    values: dict[fx.Node, object] = {}

    def seen(node: fx.Node, value: object) -> None:
        values[node] = value.clone() if isinstance(value, Tensor) else value

    watched(module, own_inputs(given.args), seen)
    scales = scales_of(module, values)
    taps = []
    for node in list(module.graph.nodes):
        layer = layer_at(module, node)
        if node.target is int8_max_pool:
            node.target = max_pool
        if layer is None and node.target is not int8.quantize:
            continue
        read = tuple(n for n in node.all_input_nodes if isinstance(values[n], Tensor))
        tensors = tuple(v for n in read if isinstance(v := values[n], Tensor))
        wanted = values[node]
        assert isinstance(wanted, Tensor)
        _require_float32(given, node, tensors[0] if layer is None else layer.scale)
        made = _of_layer(layer, tensors) if layer is not None else _of_codes(node, tensors[0])
        taps.append(Tap(node.name, read, node, tensors, wanted, *made))
        spell(module, node, scales)
    module.recompile()
    return taps


def _require_float32(given: Exportable, node: fx.Node, numbers: Tensor) -> None:
    if numbers.dtype == torch.float64:
        raise given.refused(
            f"`{node.name}` makes codes of float64, which QuantizeLinear does not take",
            help="export the float32 model, or write .pt2",
        )


def _of_layer(layer: Int8Layer, given: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    products = layer.scale.double()
    largest = 255 * products * layer.weight.double().flatten(1).abs().sum(1)
    if layer.bias is not None:
        largest = largest + layer.bias.double().abs()
    if len(given) > 1:
        largest = largest + 255 * layer.other_scale
    slack = products / 2 + _ROUNDING * largest  # the bias is a whole number of products
    behind = layer.weight.dim() - 2
    exact, slack = layer.exact(*given), slack.reshape(-1, *[1] * behind)
    if layer.output_scale is None:
        return exact, slack
    return exact / layer.output_scale + layer.output_zero, slack / layer.output_scale


def _of_codes(node: fx.Node, x: Tensor) -> tuple[Tensor, Tensor]:
    grid = grid_at(node)
    exact = x.double() / int8.single(grid["scale"]) + grid["zero"]
    return exact, 256 * torch.tensor(_ROUNDING)
