"""Second moments of what multiplies a weight, over calibration data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ..graph.runs import record
from ..ops.call import OpCall
from ..torch_internals import order_of
from .batches import Pairs

MOMENTS = 1 << 28
"""Bytes of second moments that are kept at a time."""


def affordable(call: OpCall, alike: Sequence[OpCall]) -> list[OpCall]:
    """`call` and those behind it in the graph whose moments fit into memory together."""
    behind = [other for other in alike if order_of(call.node) < order_of(other.node)]
    chosen, used = [call], _moment_bytes(call)
    for other in behind:
        used += _moment_bytes(other)
        if used > MOMENTS:
            break
        chosen.append(other)
    return chosen


def _moment_bytes(call: OpCall) -> int:
    weight = call.tensor("weight")
    return 0 if weight is None else 8 * weight[0].numel() ** 2


def second_moments(
    module: fx.GraphModule, calls: Sequence[OpCall], batches: Pairs
) -> dict[fx.Node, Tensor]:
    """E[u u^T] for each call; u is the input vector [I] of a linear layer, the patch [I * K * L] of
    a convolution.
    """
    sources = list(dict.fromkeys(call.inputs[0] for call in calls))
    totals: dict[fx.Node, Tensor] = {}
    rows: dict[fx.Node, int] = {}
    for args, _ in batches:
        values = record(module, sources, args)
        for call in calls:
            seen = _vectors(call, values[call.inputs[0]].double())
            totals[call.node] = totals.get(call.node, torch.zeros(())) + seen.T @ seen
            rows[call.node] = rows.get(call.node, 0) + seen.shape[0]
    return {node: total / max(rows[node], 1) for node, total in totals.items()}


def why_no_moments(call: OpCall) -> str:
    """Why nothing is known of what multiplies the weight of an op; "" if it is."""
    if _multiplies(call):
        return ""
    return f"{call.op.name} is neither a linear layer nor a convolution of images"


def _multiplies(call: OpCall) -> bool:
    """Whether the op is a product of its weight with vectors, or with the patches of images."""
    weight = call.tensor("weight") if "weight" in call.params else None
    if weight is None or not {"linear_in_x", "linear_in_weight"} <= call.op.traits:
        return False
    return weight.dim() == 2 or (weight.dim() == 4 and call.outputs_first and _slides(call))


def _slides(call: OpCall) -> bool:
    return call.attrs.keys() >= _WINDOW and not isinstance(call.attrs["padding"], str)


_WINDOW = frozenset({"dilation", "padding", "stride"})
"""The settings of a window that is moved over an image."""


def _vectors(call: OpCall, value: Tensor) -> Tensor:
    weight = call.tensor("weight")
    if weight is not None and weight.dim() == 2:
        return value.reshape(-1, value.shape[-1])
    return _patches(call, value)


def _patches(call: OpCall, value: Tensor) -> Tensor:
    weight = call.tensor("weight")
    assert weight is not None
    settings = {key: call.attrs[key] for key in sorted(_WINDOW)}
    patches = torch.nn.functional.unfold(value, tuple(weight.shape[2:]), **settings)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])
