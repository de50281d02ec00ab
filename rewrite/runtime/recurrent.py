"""Recurrent layers in integers: their input and, at each step, their state become codes at a scale
for each row (`rows.py`); gates and cells are computed in floats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .rows import Int8LinearRows, int8_linear_rows, quantize_rows

Linear = Callable[[Tensor, Tensor], Tensor]
"""Numbers of codes and their scales."""


def int8_lstm(
    codes: Tensor,
    rows: Tensor,
    input_weight: Tensor,
    input_scale: Tensor,
    input_bias: Tensor,
    state_weight: Tensor,
    state_scale: Tensor,
    batch_first: bool = False,
    reverse: bool = False,
) -> Tensor:
    """An LSTM of one layer on codes [T, N, I], [N, T, I] with `batch_first`, or [T, I], that begins
    at a state of zeros: its states in the same layout, with H in place of I. `reverse`: from the
    last step to the first. Weights [4 H, I] and [4 H, H] (int8) in the order of torch.nn.LSTM, each
    with a scale for each row; `input_bias` [4 H] is the sum of both biases there.
    """
    inputs = int8_linear_rows(codes, input_weight, input_scale, input_bias, rows)
    state = partial(_linear, state_weight, state_scale)
    return _states(inputs, state, batch_first, reverse)


class Int8LSTM(nn.Module):
    """`int8_lstm` as a layer: `input` and `state` are integer layers, called with codes and the
    scale of each row.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        batch_first: bool = False,
        reverse: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.input = Int8LinearRows(input_size, 4 * hidden_size, device=device)
        self.state = Int8LinearRows(hidden_size, 4 * hidden_size, bias=False, device=device)
        self.batch_first, self.reverse = batch_first, reverse

    def extra_repr(self) -> str:
        layout = f"batch_first={self.batch_first}, reverse={self.reverse}"
        return f"{self.input_size}, {self.hidden_size}, {layout}"

    def forward(self, codes: Tensor, rows: Tensor) -> Tensor:
        return _states(self.input(codes, rows), self.state, self.batch_first, self.reverse)


def _linear(weight: Tensor, scale: Tensor, codes: Tensor, rows: Tensor) -> Tensor:
    return int8_linear_rows(codes, weight, scale, None, rows)


def _states(inputs: Tensor, state: Linear, batch_first: bool, reverse: bool) -> Tensor:
    """`inputs`: what the input adds to each gate, [T, N, 4 H] or in another layout."""
    if inputs.dim() == 2:
        return _states(inputs[:, None], state, False, reverse)[:, 0]
    along = 1 if batch_first else 0
    steps = inputs.unbind(along)
    hidden = cell = inputs.new_zeros(inputs.shape[1 - along], inputs.shape[2] // 4)
    found: list[Tensor] = []
    for given in reversed(steps) if reverse else steps:
        hidden, cell = _step(given, hidden, cell, state)
        found.append(hidden)
    return torch.stack(found[::-1] if reverse else found, along)


def _step(given: Tensor, hidden: Tensor, cell: Tensor, state: Linear) -> tuple[Tensor, Tensor]:
    """Hidden state and cell after one more step. Calls are what costs time here."""
    scale = _state_scale(hidden)
    gates = state(quantize_rows(hidden, scale), scale).add_(given)
    new = gates.chunk(4, -1)[2].tanh()
    enter, keep, _, leave = gates.sigmoid_().chunk(4, -1)
    cell = (enter * new).add_(keep * cell)
    return leave * cell.tanh(), cell


def _state_scale(hidden: Tensor) -> Tensor:
    """`row_scale` of numbers between -1 and 1, in fewer steps."""
    largest = hidden.abs().amax(-1, keepdim=True)
    return largest.div_(127).clamp_(min=torch.finfo(hidden.dtype).tiny)
