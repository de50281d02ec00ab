"""Memory formats of weights: a new weight lies in memory as the one that it stands in for.

torch's kernels answer in the format of what they get, so a convolution whose weight was
channels_last and no longer is gives results that a `view` behind it does not take.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The other format that a tensor of this rank may have."""


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the strides say so; those of a row-major 1x1 kernel do not."""
    found = CHANNELS_LAST.get(tensor.dim())
    if found is None or tensor.layout is not torch.strided or not tensor.numel():
        return False
    usual = torch.empty(tensor.shape, device="meta").stride()
    return tensor.stride() != usual and tensor.stride() == _strides(tensor.shape, found)


def in_format_of(tensor: Tensor, origins: Iterable[Tensor]) -> Tensor:
    """`tensor` dense, channels_last where an origin of its rank is so, else row-major; itself where
    it lies like that already.
    """
    like = any(is_channels_last(o) for o in origins if o.dim() == tensor.dim())
    if not like or not tensor.numel():
        return tensor.contiguous()
    # Not `contiguous(memory_format=...)`: it leaves the strides of a 1x1 kernel as they are.
    strides = _strides(tensor.shape, CHANNELS_LAST[tensor.dim()])
    if tensor.stride() == strides:
        return tensor
    made = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return made.copy_(tensor)


def _strides(shape: torch.Size, found: torch.memory_format) -> tuple[int, ...]:
    return torch.empty(shape, device="meta", memory_format=found).stride()
