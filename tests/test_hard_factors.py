"""Factored layers: within their budget or refused, with the rank that was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lissom

from .support import library, run, the_rule


def conv(*args: Any, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(*args, **{"padding": 1, **more})


@pytest.mark.parametrize(
    "rule", ["low_rank_conv", "spatial_svd_conv", "tucker2_conv", "separable_conv"]
)
def test_approximations_fire_and_stay_in_budget(rule: str) -> None:
    text = library("separable") if rule == "separable_conv" else library("lowrank")
    torch.manual_seed(0)
    model = nn.Sequential(conv(16, 24, 3, stride=2)).eval()
    x = torch.randn(2, 16, 9, 9)
    args = {"M": 2} if rule == "separable_conv" else {"keep_params": 0.5}
    loose = run(model, x, [the_rule(text, rule, budget=0.99, **args)], how="once")
    assert loose.applied == 1
    loose.module.graph.lint()
    assert 0.01 < loose.difference() < 2
    tight = run(model, x, [the_rule(text, rule, budget=0.001, **args)], how="once")
    assert tight.applied == 0
    assert tight.refusals()[0].code == "B001"
    assert tight.difference() == 0


SHARED = """pipeline p {{
  input x : f[2, 16, 9, 9]
  data calib = sample("train", 32)
  stage s {{ once {rule}(keep_macs = {share}, budget = 99%) }}
}}
"""


@pytest.mark.parametrize("rule", ["low_rank_conv", "whitened_conv"])
@pytest.mark.parametrize(("share", "rank"), [("50%", 10), ("20%", 4)])
def test_a_share_of_the_multiplications_sets_the_rank(rule: str, share: str, rank: int) -> None:
    """24 * 16 * 9 multiplications for each output; 16 * 9 + 24 for each unit of rank."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(16, 24, 3, stride=2)).eval()
    batches = [(torch.randn(32, 16, 9, 9), torch.zeros(32))]
    text = SHARED.format(rule=rule, share=share)
    result = lissom.compile(model, text, data=lambda split: batches)
    assert [event.rule.partition("(")[0] for event in result.applied] == [rule]
    assert result.after.macs == rank * (16 * 9 + 24) * 25 * 2
    kept = float(share.removesuffix("%")) / 100
    assert kept - 168 / (24 * 144) < result.after.macs / result.before.macs <= kept
    by_weights = lissom.compile(
        model, text.replace("keep_macs", "keep_params"), data=lambda split: batches
    )
    assert by_weights.after.macs == result.after.macs


def test_whitened_convolutions_need_data_whatever_sets_the_rank() -> None:
    model = nn.Sequential(conv(16, 24, 3, stride=2)).eval()
    rule = the_rule(library("lowrank"), "whitened_conv", keep_macs=0.5, budget=0.99)
    driven = run(model, torch.randn(2, 16, 9, 9), [rule], how="once")
    assert driven.reasons() == ["no calibration data reached 0"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_no_svd_survives_is_left_with_the_reason(value: float) -> None:
    """H11."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)).eval()
    with torch.no_grad():
        model[0].weight[3, 3] = value
    rule = the_rule(library("lowrank"), "low_rank_linear", energy=0.5, budget=0.9)
    driven = run(model, torch.randn(2, 40), [rule], how="once")
    assert driven.refusals()[0].code == "K002"
    assert driven.refusals()[0].site == "0"
