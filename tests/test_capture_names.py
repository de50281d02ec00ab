"""Inputs that are called like a word of the generated code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.capture.capture import capture

from .captured import refusal


class Gaps(nn.Module):
    """Fills what `nan` marks, and caps the rest."""

    def forward(self, x: Tensor, nan: Tensor, inf: float = 1.0) -> Tensor:
        capped = torch.clamp(x, min=float("-inf"), max=float("inf")) * inf
        return torch.where(nan, float("nan"), capped).masked_fill(x < -9, float("-inf"))


def test_numbers_keep_their_meaning_beside_inputs_of_that_name(tmp_path: Path) -> None:
    # Nothing is marked in the example, so that the example alone would not show it.
    model, x = Gaps().eval(), torch.randn(3, 5)
    none, some = torch.zeros(3, 5, dtype=torch.bool), torch.rand(3, 5) > 0.5
    result = lissom.compile(model, "pipeline p { stage s { once fold_bn } }", inputs=(x, none))
    result.save(tmp_path / "model")
    for module in (result.model, lissom.load(tmp_path / "model")):
        for given in (x, torch.full((3, 5), -10.0)):
            expected = model(given, nan=some, inf=2.0)
            found = module(given, nan=some, inf=2.0)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert module(x, some).isnan().any()


def test_a_name_that_hides_a_module_is_refused_with_its_name() -> None:
    class Root(nn.Module):
        def forward(self, torch: Tensor) -> Tensor:
            return nn.functional.relu(torch)

    found = refusal(Root().eval(), torch.rand(2, 3))
    assert found.code == "M004"
    assert "the input `torch` hides" in found.message
    assert found.helps == ("rename the parameter `torch` of forward",)


@pytest.mark.parametrize("name", ["input", "device", "len"])
def test_a_name_that_the_code_does_not_need_is_no_trouble(name: str) -> None:
    words = {"torch": torch, "nn": nn}
    text = f"class Own(nn.Module):\n    def forward(self, {name}): return {name} * 2 - {name}"
    exec(text, words)
    captured = capture(words["Own"]().eval(), {name: torch.ones(2)})
    assert torch.equal(captured.module(**{name: torch.ones(2)}), torch.ones(2))
