"""The rounding scale: wide enough for what correct rewrites do, far from what mistakes do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lissom
from lissom.rewrite.measure.rounding_model import tolerance

FOLD = "pipeline p { stage s { once fold_bn } }"


@pytest.mark.parametrize("width", [16, 192, 1024])
def test_a_dead_channel_is_no_alarm(width: int) -> None:
    """Its weights are all but zero, so that every addition rounds at the size of its bias."""
    torch.manual_seed(width)
    model = nn.Sequential(nn.Conv2d(width, 64, 1, bias=False), nn.BatchNorm2d(64)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-8)
        model[1].running_var.zero_()
        model[1].running_mean.normal_().mul_(1e-6)
        model[1].weight.uniform_(0.5, 3)
        model[1].bias.normal_()
    x = torch.randn(2, width, 6, 6)
    result = lissom.compile(model, FOLD, inputs=(x,))
    assert len(result.applied) == 1


def test_the_allowance_grows_with_the_root_of_the_terms() -> None:
    one, many = (tolerance(torch.float64, count) for count in (1, 10_000))
    assert many == 100 * one
    assert many < 1e-12, "far below any mistake in the algebra of a rule"
