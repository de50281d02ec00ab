"""A model that gives other numbers in each call: which of its ops does, and what helps."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .captured import refusal
from .lying import Lying


class Seen(nn.Module):
    def __init__(self, function: Any = lambda y: y) -> None:
        super().__init__()
        self.layer, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


X = torch.rand(2, 3, 4, 4)


def test_a_kernel_that_changes_from_run_to_run_is_named() -> None:
    with Lying("convolution", torch.float32, changing=True):
        found = refusal(Seen().eval(), X)
    assert found.code == "M002"
    (note,) = found.notes
    assert "the kernel of conv2d in float32; shapes [2, 3, 4, 4], [4, 3, 1, 1]" in note
    assert "gives other numbers each time (test_unsteady.py:" in note
    assert "on this CPU (" in note
    assert "use_deterministic_algorithms" in found.helps[0]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda y: y + torch.rand_like(y), "rand_like"),
        (lambda y: nn.functional.dropout(y, 0.5), "bernoulli"),
        (lambda y: y * torch.empty_like(y).normal_(), "normal_"),
    ],
)
def test_an_op_that_draws_numbers_is_named(function: Any, name: str) -> None:
    found = refusal(Seen(function).eval(), X)
    assert found.code == "M002"
    assert f"`{name}" in found.notes[0]
    assert "draws random numbers" in found.notes[0]
    assert "pass random numbers as an input" in found.helps[0]


def test_no_op_is_blamed_for_what_python_draws() -> None:
    found = refusal(Seen(lambda y: y * random.random()).eval(), X)
    assert found.code == "M002"
    assert "kernel" not in found.notes[0]
    assert "draws" not in found.notes[0]
