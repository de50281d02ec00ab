"""Constant factors, divisors, summands and subtrahends disappear into the layers beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .support import Driven, Fn, library, run

RULES = library("fold", "absorb")
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 6, 7, 9, generator=GENERATOR)
ROWS = torch.randn(2, 9, 6, generator=GENERATOR)

APPLY: dict[str, Callable[[Any, Any], Any]] = {
    "scale": lambda x, k: x * k,
    "divide": lambda x, k: x / k,
    "shift": lambda x, k: x + k,
    "subtract": lambda x, k: x - k,
}


def numbers(*shape: int, seed: int = 1) -> Tensor:
    """Of both signs, none near zero."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return sign * (torch.rand(shape, generator=generator) + 0.5)


def compiled(function: Callable[[Any, Any], Any], x: Tensor = X, **parts: Any) -> Driven:
    torch.manual_seed(0)
    return run(Fn(function, **parts), x, RULES).check()


def behind(op: str, layer: nn.Module, k: Any, x: Tensor = X) -> Driven:
    parts = {"k": k} if isinstance(k, Tensor) else {}
    return compiled(lambda m, x: APPLY[op](m.c(x), m.k if parts else k), x, c=layer, **parts)


def before(op: str, layer: nn.Module, k: Any, x: Tensor = X) -> Driven:
    parts = {"k": k} if isinstance(k, Tensor) else {}
    return compiled(lambda m, x: m.c(APPLY[op](x, m.k if parts else k)), x, c=layer, **parts)


# -- where they fire -------------------------------------------------------------------------------


@pytest.mark.parametrize("op", APPLY)
@pytest.mark.parametrize("k", [2.5, -3, numbers(8, 1, 1), numbers(1, 8, 1, 1), numbers(1)])
def test_a_constant_behind_a_convolution(op: str, k: Any) -> None:
    driven = behind(op, nn.Conv2d(6, 8, 3, padding=1, groups=2), k)
    assert driven.sites(f"fold_{op}") == ["c"]
    assert driven.ops() == ["conv2d"]


@pytest.mark.parametrize("op", APPLY)
@pytest.mark.parametrize("k", [2.5, -3, numbers(6, 1, 1), numbers(1, 6, 1, 1), numbers(1)])
def test_a_constant_before_a_convolution(op: str, k: Any) -> None:
    driven = before(op, nn.Conv2d(6, 8, 3, stride=2, groups=2), k)
    assert len(driven.sites(f"absorb_{op}")) == 1
    assert driven.ops() == ["conv2d"]


@pytest.mark.parametrize("op", APPLY)
@pytest.mark.parametrize(("kind", "axes"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
def test_convolutions_over_fewer_and_more_axes(op: str, kind: type, axes: int) -> None:
    x = torch.randn(2, 4, *[5] * axes, generator=torch.Generator().manual_seed(0))
    k = numbers(4, *[1] * axes)
    assert behind(op, kind(4, 4, 3, bias=False), k, x).applied == 1
    assert before(op, kind(4, 4, 3, bias=False), k, x).applied == 1


@pytest.mark.parametrize("op", APPLY)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k", [2.5, numbers(6), numbers(1, 1, 6)])
def test_a_constant_beside_a_linear(op: str, bias: bool, k: Any) -> None:
    layer = nn.Linear(6, 6, bias=bias)
    assert behind(op, layer, k, ROWS).sites(f"fold_{op}_linear") == ["c"]
    driven = before(op, layer, k, ROWS)
    assert len(driven.sites(f"absorb_{op}_linear")) == 1
    assert driven.ops() == ["linear"]


@pytest.mark.parametrize("op", ["scale", "shift"])
def test_the_constant_may_come_first(op: str) -> None:
    k = numbers(1, 6, 1, 1)
    driven = compiled(lambda m, x: m.c(APPLY[op](m.k, x)), c=nn.Conv2d(6, 8, 3), k=k)
    assert driven.ops() == ["conv2d"]


def test_input_normalisation_disappears() -> None:
    parts = {"mean": numbers(6, 1, 1), "std": numbers(6, 1, 1, seed=2)}
    driven = compiled(lambda m, x: m.c((x - m.mean) / m.std), c=nn.Conv2d(6, 8, 3), **parts)
    assert driven.ops() == ["conv2d"]


def test_a_layer_between_constants_takes_in_both() -> None:
    parts = {"k": numbers(8, 1, 1), "b": numbers(8, 1, 1, seed=2)}
    driven = compiled(
        lambda m, x: ((m.c(x / 255 - 0.5) - m.b) / m.k) * 2, c=nn.Conv2d(6, 8, 3), **parts
    )
    assert driven.ops() == ["conv2d"]


@pytest.mark.parametrize("op", ["scale", "divide"])
def test_a_factor_may_stand_before_zero_padding(op: str) -> None:
    driven = before(op, nn.Conv2d(6, 8, 3, padding=(2, 1)), numbers(6, 1, 1))
    assert driven.ops() == ["conv2d"]


def test_the_new_weights_are_rounded_once() -> None:
    layer, k = nn.Conv2d(6, 8, 3), numbers(8, 1, 1)
    driven = behind("divide", layer, k)
    wanted = (layer.weight.double() / k.double()[..., None]).float()
    (found,) = (p for p in driven.module.parameters() if p.ndim == 4)
    assert bool(((found - wanted).abs() <= wanted.abs() * 2**-23).all())
    assert float((found == wanted).float().mean()) > 0.99


# -- where they must not ---------------------------------------------------------------------------


def left(driven: Driven, reason: str) -> bool:
    return driven.applied == 0 and any(reason in given for given in driven.reasons())


@pytest.mark.parametrize("op", ["shift", "subtract"])
@pytest.mark.parametrize("padding", [1, (0, 1), "same"])
def test_a_summand_before_zero_padding_stays(op: str, padding: Any) -> None:
    driven = before(op, nn.Conv2d(6, 8, 3, padding=padding), numbers(6, 1, 1))
    assert left(driven, "the border would miss the shift")


@pytest.mark.parametrize("op", APPLY)
@pytest.mark.parametrize(
    "k",
    [numbers(1, 9), numbers(7, 1), numbers(2, 1, 1, 1), numbers(6, 7, 9), numbers(1, 2, 6, 1, 1)],
    ids=str,
)
def test_a_constant_that_varies_along_other_axes_stays(op: str, k: Tensor) -> None:
    k = k[0] if k.ndim == 5 else k
    pointwise = nn.Conv2d(6, 6, 1)
    assert left(behind(op, pointwise, k), "along other axes") or k.shape == (2, 6, 1, 1)
    assert behind(op, pointwise, k).applied == 0
    assert before(op, pointwise, k).applied == 0


@pytest.mark.parametrize("op", APPLY)
def test_a_constant_along_positions_of_a_square_batch_stays(op: str) -> None:
    """Channels, height and width have one size, so only the axis tells them apart."""
    x = torch.randn(6, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    for k in (numbers(6), numbers(6, 1), numbers(6, 1, 1, 1)):
        assert left(behind(op, nn.Conv2d(6, 6, 1), k, x), "along other axes")
        assert left(before(op, nn.Conv2d(6, 6, 1), k, x), "along other axes")
    rows = x[0]
    for k in (numbers(6, 1), numbers(6, 1, 1)):
        assert left(behind(op, nn.Linear(6, 6), k, rows), "along other axes")
        assert left(before(op, nn.Linear(6, 6), k, rows), "along other axes")


@pytest.mark.parametrize("op", APPLY)
def test_a_constant_that_makes_channels_stays(op: str) -> None:
    """One channel and six numbers make six channels, by broadcasting."""
    assert before(op, nn.Conv2d(6, 8, 3), numbers(6, 1, 1), X[:, :1]).applied == 0
    assert behind(op, nn.Conv2d(6, 1, 3), numbers(6, 1, 1)).applied == 0
    assert before(op, nn.Linear(6, 8), numbers(6), ROWS[..., :1]).applied == 0


@pytest.mark.parametrize("op", APPLY)
def test_what_is_no_constant_stays(op: str) -> None:
    pooled = compiled(lambda m, x: m.c(APPLY[op](x, x.mean((2, 3), True))), c=nn.Conv2d(6, 8, 3))
    assert left(pooled, "is no constant")
    gated = compiled(lambda m, x: APPLY[op](m.c(x), x.mean((2, 3), True)), c=nn.Conv2d(6, 6, 3))
    assert left(gated, "is no constant")


@pytest.mark.parametrize("op", APPLY)
def test_a_layer_that_runs_twice_stays(op: str) -> None:
    driven = compiled(lambda m, x: APPLY[op](m.c(x), 2.5) + m.c(x.relu()), c=nn.Conv2d(6, 8, 3))
    assert left(driven, "its other calls would change")
    driven = compiled(lambda m, x: m.c(APPLY[op](x, 2.5)) + m.c(x.relu()), c=nn.Conv2d(6, 8, 3))
    assert left(driven, "its other calls would change")


@pytest.mark.parametrize("op", APPLY)
def test_a_constant_that_widens_the_result_stays(op: str) -> None:
    driven = behind(op, nn.Conv2d(6, 8, 3), numbers(8, 1, 1).double())
    assert left(driven, "float64, the convolution float32")
    driven = before(op, nn.Conv2d(6, 8, 3), numbers(6, 1, 1), X.half())
    assert left(driven, "is float32, its input float16")
    images = torch.randint(0, 255, (2, 6, 7, 9), dtype=torch.uint8)
    assert before(op, nn.Conv2d(6, 8, 3), 2.5, images).applied == 0


@pytest.mark.parametrize("lost", [0.0, float("nan")])
@pytest.mark.parametrize("side", [behind, before])
def test_a_divisor_without_a_reciprocal_stays(side: Callable[..., Driven], lost: float) -> None:
    k = numbers(6, 1, 1)
    k[2] = lost
    assert left(side("divide", nn.Conv2d(6, 6, 1), k), f"the least divisor is {lost:.4g}")
    assert left(side("divide", nn.Linear(6, 6), k.flatten(), ROWS), "the least divisor is")


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.k - m.c(x),
        lambda m, x: m.k / m.c(x),
        lambda m, x: m.c(m.k - x),
        lambda m, x: m.c(m.k / x),
        lambda m, x: torch.sub(m.c(x), m.k, alpha=2),
        lambda m, x: m.c(torch.sub(x, m.k, alpha=2)),
        lambda m, x: torch.div(m.c(x), m.k, rounding_mode="floor"),
        lambda m, x: m.c(torch.div(x, m.k, rounding_mode="trunc")),
    ],
)
def test_other_operations_on_the_same_things_stay(function: Callable[[Any, Any], Any]) -> None:
    assert compiled(function, c=nn.Conv2d(6, 6, 1), k=numbers(6, 1, 1)).applied == 0
