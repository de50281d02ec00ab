"""Integer layers as ONNX spells them: numbers between DequantizeLinear and QuantizeLinear.

A runtime that knows integer kernels puts one in place of `DequantizeLinear, Conv, QuantizeLinear`;
any other computes the same in floats. Weights are int8 with a scale for each output, biases int32
at the scale of the products, values uint8.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.onnx.ops import symbolic

from ..runtime import int8
from ..runtime.layers import Int8Layer

_MOST = 2**31 - 1
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
"""By the axes of their weights."""


class Grid(nn.Module):
    """Scale and zero point, as ONNX takes them; the type of the zero point is that of codes. They
    lie along the first axis where there is more than one.
    """

    def __init__(self, scale: Tensor | float, zero: Tensor | int) -> None:
        super().__init__()
        self.scale: Tensor
        self.zero: Tensor
        uint8 = partial(torch.tensor, dtype=torch.uint8)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))
        self.register_buffer("zero", zero if isinstance(zero, Tensor) else uint8(zero))

    def codes(self, numbers: Tensor) -> Tensor:
        given = (numbers.float(), self.scale, self.zero)
        types = {"dtype": self.zero.dtype, "shape": numbers.shape}
        return symbolic("QuantizeLinear", given, version=13, **types)

    def numbers(self, codes: Tensor) -> Tensor:
        given = (codes, self.scale, self.zero)
        types = {"dtype": torch.float32, "shape": codes.shape}
        axis: dict[str, Any] = {"axis": 0} if self.scale.dim() else {}
        return symbolic("DequantizeLinear", given, axis, version=13, **types)


class Quantized(nn.Module):
    """Codes of numbers."""

    def __init__(self, scale: float, zero: int) -> None:
        super().__init__()
        self.grid = Grid(int8.single(scale), zero)

    def forward(self, x: Tensor) -> Tensor:
        return self.grid.codes(x)


class QdqLayer(nn.Module):
    """An integer layer whose codes have this scale."""

    def __init__(self, layer: Int8Layer, input_scale: float) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor | None
        scale = (layer.scale.double() / input_scale).float()
        self.register_buffer("weight", layer.weight.detach().contiguous())
        self.inputs = Grid(input_scale, layer.zero)
        self.weights = Grid(scale, torch.zeros_like(scale, dtype=torch.int8))
        products = self.inputs.scale * scale
        self.biases, bias = _stored_bias(layer, products)
        self.register_buffer("bias", bias)
        self.others = Grid(layer.other_scale, layer.other_zero)
        stored = layer.output_scale
        self.outputs = None if stored is None else Grid(stored, layer.output_zero)
        self.activation = int8.ACTIVATIONS[_needed(layer)]
        geometry = layer.geometry()
        self.run = (
            partial(_CONVOLUTIONS[layer.weight.dim()], **_named(geometry)) if geometry else None
        )

    def forward(self, codes: Tensor, other: Tensor | None = None) -> Tensor:
        weight, bias = self.weights.numbers(self.weight), self.bias
        if bias is not None and self.biases is not None:
            bias = self.biases.numbers(bias)
        if self.run is not None:
            return self._finished(self.run(self.inputs.numbers(codes), weight, bias), other)
        # One row for each: Gemm has an integer kernel, a product of more axes has not.
        rows = codes.reshape(-1, codes.shape[-1]) if codes.dim() != 2 else codes
        added = other if other is None or codes.dim() == 2 else other.reshape(-1, other.shape[-1])
        found = self._finished(F.linear(self.inputs.numbers(rows), weight, bias), added)
        return found if codes.dim() == 2 else found.reshape(*codes.shape[:-1], len(weight))

    def _finished(self, y: Tensor, other: Tensor | None) -> Tensor:
        y = self.activation(y if other is None else y + self.others.numbers(other))
        return y if self.outputs is None else self.outputs.codes(y)


def _named(geometry: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("stride", "padding", "dilation", "groups"), geometry, strict=True))


def _stored_bias(layer: Int8Layer, products: Tensor) -> tuple[Grid | None, Tensor | None]:
    """The bias in whole multiples of the scale of the products, and its grid; as it is, without
    one, where sums with it could leave int32.
    """
    if layer.bias is None:
        return None, None
    whole = (layer.bias.detach().double() / products.double()).round()
    sums = 255 * layer.weight.double().flatten(1).abs().sum(1)
    if not bool((whole.abs() + sums <= _MOST).all()):
        return None, layer.bias.detach()
    return Grid(products, torch.zeros_like(products, dtype=torch.int32)), whole.int()


def _needed(layer: Int8Layer) -> str:
    """The activation that is left when the ends of the range of codes do the rest: a runtime finds
    its integer kernel only where nothing stands between a layer and its codes.
    """
    scale, zero = layer.output_scale, layer.output_zero
    if scale is None or zero != 0:
        return layer.activation
    plain = {"relu": "none", "relu6": "none" if 6 / scale > 254.6 else "relu6"}
    return plain.get(layer.activation, layer.activation)


_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def max_pool(codes: Tensor, *geometry: Any, axes: int = 2, **settings: Any) -> Tensor:
    """`int8_max_pool` as the op that ONNX has for codes, too."""
    return _POOLS[axes](codes, *geometry, **settings)


# -- in the graph ----------------------------------------------------------------------------------


def scales_of(module: fx.GraphModule, codes: set[fx.Node]) -> dict[fx.Node, float]:
    """The scale of each of these nodes, which give codes, where it is known: it is said by what
    makes codes, and kept by what moves them.
    """
    scales: dict[fx.Node, float] = {}
    for node in (n for n in module.graph.nodes if n in codes):
        own = made_scale(module, node)
        moved = {scales.get(n) for n in node.all_input_nodes if n in codes}
        found = own if own is not None else moved.pop() if len(moved) == 1 else None
        if found is not None:
            scales[node] = found
    return scales


def made_scale(module: fx.GraphModule, node: fx.Node) -> float | None:
    """The scale that a node stores codes at, if it makes any."""
    layer = layer_at(module, node)
    if layer is not None:
        return layer.output_scale
    return int8.single(grid_at(node)["scale"]) if node.target is int8.quantize else None


def layer_at(module: fx.GraphModule, node: fx.Node) -> Int8Layer | None:
    if node.op != "call_module":
        return None
    found = module.get_submodule(str(node.target))
    return found if isinstance(found, Int8Layer) else None


def grid_at(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of `quantize` by name."""
    return inspect.signature(int8.quantize).bind(*node.args, **node.kwargs).arguments


def spell(module: fx.GraphModule, node: fx.Node, scales: Mapping[fx.Node, float]) -> None:
    """Puts the form of ONNX in place of what a node calls. Codes whose scale nobody says count as
    whole numbers; the weights then have all of the layer's scale.
    """
    layer = layer_at(module, node)
    if layer is not None:
        made: nn.Module = QdqLayer(layer, scales.get(_codes_of(node), 1.0))
        given = (node.args, node.kwargs)
    else:
        grid = grid_at(node)
        made, given = Quantized(grid["scale"], grid["zero"]), ((grid["x"],), {})
    module.add_submodule(node.name, made)
    node.op, node.target = "call_module", node.name
    node.args, node.kwargs = given


def _codes_of(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]
