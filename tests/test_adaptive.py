"""Weights move to codes that keep what a layer gives: `adaptive.lissom`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.passes.adaptive import adaptive_codes, corrected_bias
from lissom.passes.quantization import dequantized, symmetric
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime.layers import Int8Layer

from .support import Fn, library, run

RULES = library("adaptive", "quant")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def alike(rows: int, width: int) -> Tensor:
    """Inputs `[rows, width]` that go together and are not zero on average, float64."""
    mix = drawn(width, width, seed=1) / width**0.5
    return (drawn(rows, width) @ mix.matrix_exp() + drawn(width, seed=2)).double()


def lost(w: Tensor, rounded: Tensor, x: Tensor) -> float:
    """Mean squared error of what `w [O, J]` gives."""
    return float((x @ (w - rounded).T).square().mean())


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_results_move_less_than_with_the_nearest_codes(bits: int) -> None:
    w, x = drawn(24, 150, seed=3).double(), alike(600, 150)
    nearest = dequantized(*symmetric(w, bits))
    codes, scale = adaptive_codes(w, x.T @ x / len(x), bits=bits)
    found = dequantized(codes, scale)
    assert lost(w, found, x) < lost(w, nearest, x) / 2
    assert lost(w, found, alike(5000, 150)[600:]) < lost(w, nearest, x) / 2, "on other data"
    assert torch.equal(scale, symmetric(w, bits)[1])
    most = 2 ** (bits - 1) - 1
    assert codes.abs().amax(1).eq(most).all()
    again, same = symmetric(found.float(), bits)
    assert torch.equal(again, codes)
    assert torch.allclose(same.double(), scale, rtol=1e-6)


def test_inputs_that_have_nothing_to_do_with_each_other_take_the_nearest() -> None:
    w = drawn(6, 20).double()
    assert torch.equal(adaptive_codes(w, torch.eye(20).double())[0], symmetric(w)[0])
    assert torch.equal(adaptive_codes(w, torch.zeros(20, 20).double())[0], symmetric(w)[0])


def test_the_best_of_all_codes_is_hardly_better() -> None:
    """All 3^5 codes of a row, but for those without a largest one."""
    w, x = drawn(40, 5).double(), alike(400, 5)
    codes, scale = adaptive_codes(w, x.T @ x / len(x), bits=2)
    grid = torch.cartesian_prod(*[torch.arange(-1.0, 2.0).double()] * 5)
    errors = (x @ (w[:, None] - grid * scale[:, None, None]).mT).square().mean(1)
    found = (x @ (w - dequantized(codes, scale)).T).square().mean(0)
    nearest = (x @ (w - dequantized(*symmetric(w, 2))).T).square().mean(0)
    assert found.sum() < 0.6 * nearest.sum()
    assert found.sum() < 1.7 * errors.amin(1).sum()


def test_groups_are_rounded_each_with_its_own_inputs() -> None:
    w, x = drawn(6, 3, 2, 1).double(), alike(300, 12)
    parts = [x[:, :6], x[:, 6:]]
    seen = torch.stack([part.T @ part / 300 for part in parts])
    mean = torch.stack([part.mean(0) for part in parts])
    codes, scale = adaptive_codes(w, seen, mean, bits=4)
    bias = corrected_bias(torch.ones(6), w, dequantized(codes, scale), mean)
    for at in (0, 1):
        own = slice(3 * at, 3 * at + 3)
        apart, _ = adaptive_codes(w[own], seen[at], mean[at : at + 1], bits=4)
        assert torch.equal(codes[own], apart)
        moved = (w[own] - dequantized(codes, scale)[own]).flatten(1)
        assert bias is not None
        assert torch.allclose(bias[own].double(), 1 + moved @ mean[at], atol=1e-6)


def test_rows_of_zeros_stay_and_others_are_refused() -> None:
    w, x = drawn(4, 9).double(), alike(50, 9)
    w[2] = 0
    codes, scale = adaptive_codes(w, x.T @ x / 50)
    assert codes[2].eq(0).all()
    assert scale[2] == 1
    for bad in (float("inf"), float("nan")):
        w[1, 1] = bad
        with pytest.raises(LissomError, match="infinite or nan"):
            adaptive_codes(w, x.T @ x / 50)
    with pytest.raises(LissomError, match="do not fit"):
        adaptive_codes(drawn(4, 9), torch.eye(8))
    with pytest.raises(LissomError, match="do not fit"):
        corrected_bias(drawn(4), drawn(4, 9), drawn(4, 9), drawn(1, 8))


# -- whole models ----------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolutions, one of them by channel, and two linears, of which one has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8, stride=2)
        self.c, self.d = nn.Linear(72, 16), nn.Linear(16, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.d(torch.relu(self.c(x.flatten(1))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def data() -> list[Any]:
    """Smooth images: pixels that go together."""
    images = functional.avg_pool2d(drawn(64, 3, 10, 10), 3, 1) + 0.3
    return [(part, torch.zeros(32)) for part in images.split(32)]


def compiled(steps: str, model: nn.Module | None = None, x: Tensor | None = None) -> Any:
    text = RULES.replace("budget: frac = 5%", "budget: frac = 100%")
    text += f'pipeline p {{ data calib = sample("train", all)\n stage s {{ {steps} }} }}'
    x = data()[0][0][:2] if x is None else x
    return lissom.compile(model or net(), text, inputs=(x,), data=data())


def away(result: Any, model: nn.Module, count: float = 1) -> float:
    x = torch.cat([x for x, _ in data()])
    with torch.inference_mode():
        want = model(x)
        return ((result.model(x) - want).norm() / want.norm()).item() * count


SNAP = "once watch; calibrate calib; once int8_conv2d(bits = 4), int8_linear(bits = 4)"
ADAPT = "once adaptive_conv2d(bits = 4, budget = 90%), adaptive_linear(bits = 4, budget = 90%); "


def test_layers_of_four_bits_lose_less() -> None:
    plain, adapted = compiled(SNAP), compiled(ADAPT + SNAP)
    assert len(adapted.applied) == 8
    assert away(adapted, net()) < away(plain, net()) / 2
    for layer in (m for m in adapted.model.modules() if isinstance(m, Int8Layer)):
        assert layer.weight.flatten(1).abs().amax(1).eq(7).all()


def test_integer_layers_find_the_codes_again() -> None:
    """The network on the grid, and the one of integer layers, differ by what values lose alone."""
    alone, both = compiled(ADAPT), compiled(ADAPT + SNAP)
    layers = [m for m in both.model.modules() if isinstance(m, Int8Layer)]
    held = [m for m in alone.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer, float_one in zip(layers, held, strict=True):
        units = float_one.weight / (float_one.weight.flatten(1).abs().amax(1) / 7).view(
            -1, *[1] * (float_one.weight.dim() - 1)
        )
        assert torch.equal(units.round().to(torch.int8), layer.weight)


def test_the_mean_of_the_results_stays() -> None:
    model, x = net(), torch.cat([x for x, _ in data()])
    result = compiled("once adaptive_conv2d(bits = 3, budget = 90%)", model)
    first = next(m for m in result.model.modules() if isinstance(m, nn.Conv2d))
    given, want = first(x), model.a(x)  # type: ignore[operator]
    assert (given - want).abs().max() > 0.05
    assert torch.allclose(given.mean((0, 2, 3)), want.mean((0, 2, 3)), atol=1e-5)


def test_without_data_nothing_is_known() -> None:
    driven = run(net(), data()[0][0][:2], library("adaptive"), "once")
    assert driven.applied == 0
    assert driven.reasons("adaptive_linear")[0] == "no calibration data reached c"


def test_moments_beyond_memory_are_refused_in_words() -> None:
    wide = Fn(lambda m, x: m.b(x.flatten(1).repeat(1, 64)), b=nn.Linear(12288, 1))
    result = compiled("once adaptive_linear", wide)
    assert result.applied == []
    assert "second moments take 1152 MB" in result.journal.of(Refused)[0].reason
