"""Whole-model equality: rounding that a model amplifies is no alarm, a changed model is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from lissom.rewrite.graph.digest import weights_at
from lissom.rewrite.measure import rounding
from lissom.rewrite.measure.compare import distance, drift, model_equality, untouched


class Amplifier(nn.Module):
    """Eight layers that stretch small differences, as deep nets with large gains do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(6 * layer(x))
        return x


def nudged(model: Amplifier, size: float) -> Amplifier:
    """A copy whose first weight is off by `size` units in the last place."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        weight = other.layers[0].weight
        weight.mul_(1 + size * torch.finfo(weight.dtype).eps)
    return other


def amplifier(dtype: torch.dtype) -> tuple[Amplifier, Tensor]:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    return Amplifier().eval().to(dtype), x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_amplified_rounding_is_no_alarm(dtype: torch.dtype) -> None:
    model, x = amplifier(dtype)
    other = nudged(model, 1)
    plain = distance(model(x).detach(), other(x).detach())
    verdict = model_equality(model, other, (x,), 60)
    assert plain > 32 * torch.finfo(dtype).eps * 60**0.5, (
        "the model must amplify, or this tests nothing"
    )
    assert verdict.holds, verdict
    assert "own rounding error" in verdict.detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_changed_model_is_found(dtype: torch.dtype) -> None:
    model, x = amplifier(dtype)
    assert not model_equality(model, nudged(model, 1e3), (x,), 60).holds


def test_a_model_whose_outputs_are_rounding_alone_is_not_checked() -> None:
    """In float32 it overflows, in float64 one unit in the last place changes every output."""
    model, x = amplifier(torch.float64)
    wide = nn.Sequential(model, nn.Identity())
    other = nn.Sequential(nudged(model, 1e3), nn.Identity())
    assert model_equality(wide, other, (x * 1e60,), 60).how == "not checked"


def test_a_result_that_cancels_to_zero_is_not_checked() -> None:
    """(1 - 1) w is 0, and w - w may be the rounding of w."""
    before = Shifted(torch.ones(1, 5), torch.full((5,), -1.0), torch.zeros(1))
    after = Shifted(torch.ones(1, 5), torch.zeros(5), torch.full((1,), -5.0) * (1 + 1e-7))
    found = model_equality(before, after, (torch.ones(5),), 3)
    assert (found.how, found.holds) == ("not checked", True)


def test_an_exact_difference_has_the_rounding_of_what_it_is_made_of() -> None:
    """W (k - k) is 0 whatever k is; W k - W k is not, once a part of it was rounded."""
    torch.manual_seed(0)
    k, layer = torch.randn(8), nn.Linear(8, 8, bias=False).eval()
    folded = nn.Linear(8, 8).eval()
    with torch.no_grad():
        folded.weight.copy_(layer.weight)
        folded.bias.copy_((-layer.weight.double() @ k.double()).float())
    before = fx.symbolic_trace(Cancelling(layer))
    found = model_equality(before, folded, (k,), 3)
    assert found.worst > 1e100
    assert (found.how, found.holds) == ("not checked", True)


class Cancelling(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x)


def test_a_plain_model_has_the_plain_tolerance() -> None:
    model, x = nn.Linear(8, 8).eval(), torch.randn(4, 8)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.mul_(1.001)
    assert not model_equality(model, other, (x,), 1).holds
    assert model_equality(model, model, (x,), 1).worst == 0.0


def test_distance_sees_nan_shape_and_dtype() -> None:
    x = torch.ones(3)
    nan = torch.tensor([1.0, torch.nan, 1.0])
    assert distance(x, x.double()) == float("inf")
    assert distance(x, torch.ones(4)) == float("inf")
    assert distance(x, nan) == float("inf")
    assert distance(nan, nan) == 0.0
    assert distance(2 * x, x) == 0.5


def test_an_infinity_hides_nothing_beside_it() -> None:
    infinite = torch.tensor([torch.inf, torch.inf, 4.0])
    assert distance(infinite, infinite) == 0.0
    assert distance(infinite, torch.tensor([1e4, torch.inf, 4.0])) == float("inf")
    assert distance(torch.tensor([1e4, torch.inf, 4.0]), infinite) == float("inf")
    assert distance(infinite, torch.tensor([torch.inf, torch.inf, 2.0])) == 0.5


def test_drift_is_relative_to_the_original() -> None:
    model = nn.Linear(4, 4, bias=False).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.mul_(1.1)
    assert abs(drift(model, other, [(torch.randn(16, 4),)]) - 0.1) < 1e-6


def test_a_weight_that_is_written_to_or_replaced_is_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = weights_at(model)
    assert untouched(before, weights_at(model)).holds
    with torch.no_grad():
        model[0].weight.add_(0)
    assert "0.weight" in untouched(before, weights_at(model)).detail
    before = weights_at(model)
    model[1] = copy.deepcopy(model[1])
    assert not untouched(before, weights_at(model)).holds


class Shifted(nn.Module):
    """W (x + k) + c, whose one result is small beside its terms."""

    def __init__(self, weight: Tensor, shift: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x + self.shift, self.weight, self.bias)


def cancelling(seed: int, wrong: float = 0.0) -> tuple[Shifted, Shifted, Tensor]:
    """A model, the same with its shift in the bias (off by a share `wrong`), and an input."""
    generator = torch.Generator().manual_seed(seed)
    weight, shift = torch.randn(1, 5, generator=generator), torch.randn(5, generator=generator)
    x = torch.randn(5, generator=generator)
    bias = -(1 + 1e-4) * (weight.double() @ (x + shift).double())
    folded = bias.float().double() + weight.double() @ shift.double()
    after = Shifted(weight, torch.zeros(5), (folded * (1 + wrong)).float())
    return Shifted(weight, shift, bias.float()), after, x


def judged(seeds: int, wrong: float = 0.0) -> list[bool]:
    models = [cancelling(seed, wrong) for seed in range(seeds)]
    return [model_equality(before, after, (x,), 3).holds for before, after, x in models]


def test_a_result_that_is_near_the_truth_by_luck_is_no_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert all(judged(400))
    monkeypatch.setattr(rounding, "RUNS", 0)
    assert not all(judged(400))


def test_a_cancelling_sum_that_is_wrong_is_found() -> None:
    assert not any(judged(100, wrong=1e-3))


class Single(nn.Module):
    """As kernels that take an empty result in float32 and refuse it in float64."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("Output size is too small")
        return x * self.factor


def test_a_model_that_runs_in_one_precision_only_is_judged_in_it() -> None:
    x = torch.randn(4)
    assert not model_equality(Single(1.0), Single(1.001), (x,), 1).holds
    assert model_equality(Single(1.0), Single(1.0), (x,), 1).holds
