"""Which tensors have memory in common, by the addresses of their elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def overlapping(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Groups of tensors (their positions) whose spans of memory overlap, whatever their dtypes and
    storages; a tensor of no elements overlaps nothing.
    """
    groups = [[i] for i, tensor in enumerate(tensors) if tensor.numel() == 0]
    spans = sorted((addresses(tensor), i) for i, tensor in enumerate(tensors) if tensor.numel())
    reach = ("", 0)
    for (device, start, end), i in spans:
        if device == reach[0] and start < reach[1]:
            groups[-1].append(i)
        else:
            groups.append([i])
        reach = max(reach, (device, end))
    return groups


def addresses(tensor: torch.Tensor) -> tuple[str, int, int]:
    """The device, and the range of addresses from the first element to behind the last."""
    start = tensor.data_ptr()
    length = span(tensor.shape, tensor.stride()) * tensor.element_size()
    return str(tensor.device), start, start + length


def span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last one, both included; 0 for a tensor of no elements."""
    if 0 in shape:
        return 0
    return 1 + sum((extent - 1) * step for extent, step in zip(shape, stride, strict=True))
