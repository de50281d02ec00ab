"""Integer layers whose scales are found when they run, as ONNX spells them: MatMulInteger, whose
sums are whole numbers, between ops of floats.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.onnx.ops import symbolic

from ..runtime.rows import ZERO, Int8LinearRows, finished_rows, quantize_rows, row_steps


def row_codes(x: Tensor, scale: Tensor) -> Tensor:
    """`quantize_rows` in ops that ONNX has."""
    return (row_steps(x, scale) + ZERO).to(torch.uint8)


class RowLayer(nn.Module):
    """A layer that reads codes and the scales of their rows."""

    def __init__(self, layer: Int8LinearRows) -> None:
        super().__init__()
        self.weight: Tensor
        self.zero: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", layer.weight.detach().t().contiguous())
        self.register_buffer("zero", torch.tensor(ZERO, dtype=torch.uint8))
        self.register_buffer("scale", layer.scale.detach().contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, codes: Tensor, rows: Tensor) -> Tensor:
        shape = (*codes.shape[:-1], self.weight.shape[1])
        given, types = (codes, self.weight, self.zero), {"dtype": torch.int32, "shape": shape}
        sums = symbolic("MatMulInteger", given, version=10, **types)
        return finished_rows(sums.float() * self.scale, rows, self.bias)


def spell_rows(module: fx.GraphModule, node: fx.Node) -> None:
    """Puts the form of ONNX in place of what a node calls: `quantize_rows`, or a layer."""
    if node.target is quantize_rows:
        node.target = row_codes
        return
    layer = module.get_submodule(str(node.target))
    assert isinstance(layer, Int8LinearRows)
    module.add_submodule(node.name, RowLayer(layer))
    node.target = node.name


def exact_codes(x: Tensor, scale: Tensor) -> tuple[Tensor, float]:
    """Codes in real arithmetic, and how far from them float32 may be before it rounds."""
    return x.double() / scale.double() + ZERO, 256 * 2.0**-20


def exact_numbers(layer: Int8LinearRows, codes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same of what a layer gives."""
    largest = 255 * layer.scale.double() * layer.weight.double().abs().sum(1) * rows.double()
    if layer.bias is not None:
        largest = largest + layer.bias.double().abs()
    return layer.exact(codes, rows), 2.0**-20 * largest
