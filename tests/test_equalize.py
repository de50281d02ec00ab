"""Channels between two layers get weights of one size on both sides: `equalize.lissom`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.passes.equalization import balance, imbalance

from .support import Driven, Fn, library, run

RULES = library("equalize")


def image(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net(seed: int = 0) -> nn.Module:
    """Two convolutions, one of them by channel, and two linears. Rows are up to 2^12 apart."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 6), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for at in (0, 3, 6):
            sizes = torch.exp2(torch.randint(-6, 7, (len(layers[at].weight),)).float())
            layers[at].weight *= sizes.view(-1, *[1] * (layers[at].weight.dim() - 1))
            layers[at].bias *= sizes
    return layers


def pairs(model: Any) -> list[tuple[Tensor, Tensor, int]]:
    """Weights of neighbours, and the groups of the second."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return [(a.weight, b.weight, getattr(b, "groups", 1)) for a, b in pairwise(layers)]


def test_all_channels_of_a_network_become_of_one_size_and_no_bit_changes() -> None:
    driven = run(net(), image(), RULES)
    before, after = (max(imbalance(*p) for p in pairs(m)) for m in (driven.model, driven.module))
    assert before > 60
    assert after <= 2.1
    driven.module.recompile()
    assert torch.equal(driven.module(image()), driven.model(image()))


def test_it_ends_and_begins_no_more() -> None:
    for seed in range(4):
        driven = run(net(seed), image(), RULES)
        assert 3 <= driven.applied < 40
        names = [name for name, _ in driven.module.named_modules()]
        assert not any("conv2d_0.equalize_conv2d" in name for name in names)
        assert run(driven.module.eval(), image(), RULES).applied == 0


def test_codes_of_small_channels_are_no_longer_coarse() -> None:
    rest = "once watch; calibrate calib; once int8_conv2d, int8_linear"
    errors = []
    for first in ("", "fixpoint { equalize_conv2d; equalize_flat2d; equalize_linear };"):
        text = f'pipeline p {{ data calib = sample("train", all)\n stage s {{ {first} {rest} }} }}'
        text = library("quant").replace("budget: frac = 5%", "budget: frac = 100%") + text
        result = lissom.compile(net(), text, inputs=(image(),), data=[(image(32), 0)])
        want = net()(image())
        errors.append(((result.model(image()) - want).norm() / want.norm()).item())
    assert errors[1] < errors[0] / 2


def two(act: nn.Module, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)
    with torch.no_grad():
        a.weight[1] *= 100
    return Fn(more.pop("forward", lambda m, x: m.b(m.act(m.a(x)))), a=a, act=act, b=b, **more)


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.AvgPool2d(2)])
def test_what_may_bend_elsewhere_stays(act: nn.Module) -> None:
    assert run(two(act), image(), RULES).applied == 0


def test_what_others_read_stays() -> None:
    seen = two(nn.ReLU(), forward=lambda m, x: (h := m.act(m.a(x))).mean() + m.b(h))
    driven = run(seen, image(), RULES)
    assert driven.applied == 0
    assert any("is also read by" in text for text in driven.reasons())
    twice = two(nn.ReLU(), forward=lambda m, x: m.b(m.act(m.a(x))) + m.a(x)[:, :3, 2:, 2:])
    assert "runs elsewhere too" in run(twice, image(), RULES).reasons("equalize_conv2d")[0]


def reason(value: float, row: int = 1) -> Driven:
    model = two(nn.ReLU())
    with torch.no_grad():
        model.a.weight[row] = value  # type: ignore[index, union-attr, operator]
    return run(model, image(), RULES)


def test_rows_of_zeros_stay_and_infinite_ones_are_said() -> None:
    driven = reason(0.0, row=2).check()
    assert driven.applied == 1
    layer = next(m for m in driven.module.modules() if isinstance(m, nn.Conv2d))
    assert layer.weight[2].eq(0).all()
    assert layer.bias is not None
    assert layer.bias[2] == driven.model.a.bias[2]  # type: ignore[union-attr, index]
    assert reason(0.0).applied == 0
    assert any("infinite or nan" in text for text in reason(float("inf")).reasons())


def test_factors_are_powers_of_two_that_meet_in_the_middle() -> None:
    rows = torch.tensor([[8.0], [1.0], [0.0], [0.5], [3.0]])
    columns = torch.tensor([[0.5, 1.0, 1.0, 8.0, 1.0], [0.1, 0.2, 0.3, 0.4, 2.0]])
    assert balance(rows, columns).tolist() == [4.0, 1.0, 1.0, 0.25, 1.0]
    assert imbalance(rows, columns) == pytest.approx(16)
    grouped = torch.tensor([[2.0], [2.0], [32.0], [1.0]])[:, :, None]
    assert balance(torch.tensor([[2.0], [2.0]]), grouped, groups=2).tolist() == [1.0, 0.25]
