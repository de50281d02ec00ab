"""Means and second moments of what multiplies a weight, over calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    return 0 if weight is None else 8 * _groups(call) * weight[0].numel() ** 2


def _groups(call: OpCall) -> int:
    return call.attrs.get("groups", 1)


@dataclass(slots=True)
class Moments:
    """E[u] `[G, J]` and E[u u^T] `[G, J, J]` for each of G groups of outputs, in float64; u is the
    input vector of a linear layer, the patch [J] of a convolution that a group reads.
    """

    mean: Tensor
    second: Tensor
    rows: int = 0

    @classmethod
    def of(cls, call: OpCall) -> Moments:
        weight, groups = call.tensor("weight"), _groups(call)
        width = 0 if weight is None else weight[0].numel()
        double = torch.float64
        zeros = torch.zeros(groups, width, dtype=double)
        return cls(zeros, torch.zeros(groups, width, width, dtype=double))

    def add(self, seen: Tensor) -> None:
        """Sums up more of u, `[rows, G * J]`."""
        parts = seen.reshape(len(seen), *self.mean.shape).movedim(0, 1)
        self.mean += parts.sum(1)
        self.second += parts.mT @ parts
        self.rows += len(seen)

    def averaged(self) -> Moments:
        rows = max(self.rows, 1)
        return Moments(self.mean / rows, self.second / rows, self.rows)


def second_moments(
    module: fx.GraphModule, calls: Sequence[OpCall], batches: Pairs
) -> dict[fx.Node, Moments]:
    """What multiplies the weight of each call, on average."""
    sources = list(dict.fromkeys(call.inputs[0] for call in calls))
    totals = {call.node: Moments.of(call) for call in calls}
    for args, _ in batches:
        values = record(module, sources, args)
        for call in calls:
            for part in _parts(values[call.inputs[0]]):
                totals[call.node].add(_vectors(call, part.double()))
    return {node: total.averaged() for node, total in totals.items()}


def _parts(value: Tensor) -> Sequence[Tensor]:
    """Single samples of images, whose patches take many times their memory."""
    return value.split(1) if value.dim() == 4 else (value,)


def why_no_moments(call: OpCall) -> str:
    """Why nothing is known of what multiplies the weight of an op; "" if it is."""
    if not _multiplies(call):
        return f"{call.op.name} is neither a linear layer nor a convolution of images"
    if _moment_bytes(call) > 4 * MOMENTS:
        return f"its second moments take {_moment_bytes(call) >> 20} MB of memory"
    return ""


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
