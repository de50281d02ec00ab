"""Layers that run several times, each in a site of one rule: all change alike, or none does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import lissom

from .support import random_norms


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        one, two = (self.head(self.body(image)).mean((2, 3)) for image in (x, z))
        return (one * two).sum(-1)


def test_what_is_saved_is_counted_once_and_one_layer_is_stored(tmp_path: Path) -> None:
    program = "pipeline p { stage fold { fixpoint { fold_bn } } }"
    given = (torch.randn(2, 3, 9, 9), torch.randn(2, 3, 7, 8))
    result = lissom.compile(random_norms(Siamese()), program, inputs=given)
    assert len(result.applied) == 4
    assert (result.before.params, result.after.params) == (3 * 8 * 9 + 24 + 32 + 8, 224 + 36)
    told = sum(event.after.params - event.before.params for event in result.applied)
    assert told == result.after.params - result.before.params
    result.save(tmp_path / "out")
    assert torch.equal(lissom.load(tmp_path / "out")(*given), result.model(*given))
