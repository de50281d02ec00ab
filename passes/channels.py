"""Numbers laid along the channels of a weight: the arithmetic of folding a map into a layer."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .tensors import Number, require, wide


def scale_transposed(w: Tensor, gain: Tensor, groups: int = 1) -> Tensor:
    """`w [I, O / groups, ...]` of a transposed convolution with its outputs scaled by `gain [O]`.

    Output channel `q * (O / groups) + j` is column j of the `I / groups` rows of group q, so the
    gains lie along axis 1 and start anew in each group. Raises K001 if the sizes do not fit.
    """
    columns = w.shape[1]
    _check_fit("scale_transposed", w, gain, groups)
    blocks = wide(w).reshape(groups, w.shape[0] // groups, columns, prod(w.shape[2:]))
    return (blocks * wide(gain).reshape(groups, 1, columns, 1)).reshape(w.shape).to(w.dtype)


def scale_inputs(w: Tensor, gain: Tensor, groups: int = 1) -> Tensor:
    """`w [O, I / groups, ...]` with inputs scaled by `gain [I]`; each group reads its own share."""
    blocks, factors = _by_group("scale_inputs", w, gain, groups)
    return (blocks * factors).reshape(w.shape).to(w.dtype)


def response(w: Tensor, constant: Tensor, groups: int = 1) -> Tensor:
    """What `w [O, I / groups, ...]` answers, `[O]`, where input channel i is `constant[i]`."""
    blocks, shifts = _by_group("response", w, constant, groups)
    return (blocks * shifts).sum(dim=(2, 3)).reshape(-1).to(w.dtype)


def _by_group(name: str, w: Tensor, numbers: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """`w` as `[groups, O / groups, I / groups, taps]`; `numbers [I]` shaped to meet its inputs."""
    columns = w.shape[1]
    _check_fit(name, w, numbers, groups)
    blocks = wide(w).reshape(groups, w.shape[0] // groups, columns, prod(w.shape[2:]))
    return blocks, wide(numbers).reshape(groups, 1, columns, 1)


def _check_fit(name: str, w: Tensor, numbers: Tensor, groups: int) -> None:
    require(
        numbers.numel() == groups * w.shape[1] and w.shape[0] % groups == 0,
        name,
        f"{numbers.numel()} numbers, {groups} groups and {list(w.shape)} weights do not fit",
    )


def per_channel(constant: Tensor | Number, channels: int, axis: int, rank: int) -> Tensor | None:
    """`constant` as one number for each channel, `[channels]`, or none if it has other axes too.

    It broadcasts against a value of `rank` axes with its channels on `axis` (negative: from the
    end). A plain number counts for every channel. In float64, whatever the constant is made of: a
    rule goes on computing with it.
    """
    if not isinstance(constant, Tensor):
        return torch.full((channels,), float(constant), dtype=torch.float64)
    if constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + tuple(constant.shape)
    at = axis % rank
    fits = shape[at] in (1, channels) and constant.numel() == shape[at]
    return constant.detach().double().reshape(-1).expand(channels) if fits else None


def spread(x: Tensor, times: int) -> Tensor:
    """Each element `times` in a row, `[N * times]`: how `flatten` lays out channels."""
    return x.detach().repeat_interleave(times)


def silent_bias(w: Tensor, bias: Tensor | None) -> Tensor:
    """What the channels of `w [O, ...]` without any weight give for every input, `[O]`: their bias;
    0 for all others.
    """
    held = torch.zeros(len(w), dtype=torch.float64) if bias is None else wide(bias)
    return torch.where(_silent(w), held, 0.0)


def without_silent(v: Tensor, w: Tensor, groups: int = 1) -> Tensor:
    """`v [P, O / groups, ...]`, with 0 where it reads a channel of `w [O, ...]` without weights."""
    return scale_inputs(v, (~_silent(w)).double(), groups)


def _silent(w: Tensor) -> Tensor:
    return (wide(w).reshape(len(w), -1) == 0).all(1)


FUNCTIONS = (
    scale_transposed,
    scale_inputs,
    response,
    per_channel,
    spread,
    silent_bias,
    without_silent,
)
