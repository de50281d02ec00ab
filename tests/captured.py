"""What the tests of capture share: refusals by name, comparison with the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import Diagnostic, LissomError
from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.capture.equality import first_difference


def refusal(model: nn.Module, *inputs: Any, **options: Any) -> Diagnostic:
    with pytest.raises(LissomError) as caught:
        capture(model, inputs, **options)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.helps
    return diagnostic


def same(captured: Captured, model: nn.Module, *args: Any) -> bool:
    with torch.no_grad():
        expected = model(*(arg.clone() for arg in args))
        return first_difference(expected, captured.module(*args)) is None


def codes(captured: Captured) -> list[str]:
    return [note.code for note in captured.notes]


class Lambda(nn.Module):
    """A module whose forward is the given function of itself and the inputs."""

    def __init__(self, function: Any, **parts: Any) -> None:
        super().__init__()
        self._function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._function(self, *inputs)
