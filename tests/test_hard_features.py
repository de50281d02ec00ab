"""Hard model features: rules fire where they may, and nothing changes where they may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lissom.grammar.diagnostics import LissomError

from .support import Driven, Fn, Fn2, library, random_norms, run

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
EXACT = library("tidy", "fold", "merge")


def compiled(function: Callable[..., Any], x: Any = X, kind: type[Fn] = Fn, **parts: Any) -> Driven:
    torch.manual_seed(0)
    return run(random_norms(kind(function, **parts)), x, EXACT).check()


def pair(norm: nn.Module | None = None, **more: Any) -> dict[str, nn.Module]:
    conv = nn.Conv2d(8, 8, 3, **{"padding": 1, **more})
    return {"c": conv, "n": norm or nn.BatchNorm2d(8)}


def both(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.n(m.c(x))


# -- batch norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "fires"),
    [
        (nn.BatchNorm2d(8, affine=False), True),
        (nn.BatchNorm2d(8, momentum=None), True),
        (nn.BatchNorm2d(8, eps=0.3), True),
        (nn.SyncBatchNorm(8), True),
        (nn.BatchNorm2d(8, track_running_stats=False), False),
    ],
)
def test_variants_of_batch_norm(norm: nn.Module, fires: bool) -> None:
    """H07."""
    assert compiled(both, **pair(norm)).sites("fold_bn") == (["c"] if fires else [])


@pytest.mark.parametrize(("gain", "variance"), [(0.0, 1.0), (-2.0, 0.5), (1.0, 0.0)])
def test_strange_statistics(gain: float, variance: float) -> None:
    """H07."""
    model = random_norms(Fn(both, **pair()))
    with torch.no_grad():
        model.n.weight.fill_(gain)
        model.n.running_var.fill_(variance)
    assert run(model, X, EXACT).check().sites("fold_bn") == ["c"]


def test_a_variance_without_root_is_refused() -> None:
    """H07. Not by eps=0, which torch 2.10 takes for a mistake."""
    model = random_norms(Fn(both, **pair(nn.BatchNorm2d(8, eps=2**-10))))
    with torch.no_grad():
        model.n.running_var[3] = -(2**-10)
    driven = run(model, X + 1, EXACT)
    assert driven.sites("fold_bn") == []
    assert any("has no root" in reason for reason in driven.reasons("fold_bn"))


# -- convolutions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"groups": 4},
        {"groups": 8},
        {"dilation": 2},
        {"stride": (1, 2)},
        {"padding": (0, 2)},
        {"padding": "same"},
        {"padding": "valid"},
        {"bias": False},
        {"groups": 2, "stride": 2, "dilation": (2, 1), "padding": (2, 0)},
    ],
)
def test_settings_of_convolutions(more: dict[str, Any]) -> None:
    """H08."""
    assert compiled(both, **pair(**more)).sites("fold_bn") == ["c"]


@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6), (1, 4, 3, 4, 5)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (1, 4, 3, 4, 5)),
    ],
)
def test_other_dimensions(conv: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    """H08."""
    assert compiled(both, torch.randn(shape), c=conv, n=norm).applied == 1


def test_a_large_kernel_is_verified_at_full_size() -> None:
    conv = nn.Conv2d(3, 8, 11, stride=4, padding=2)
    assert compiled(both, torch.randn(1, 3, 32, 32), c=conv, n=nn.BatchNorm2d(8)).applied == 1


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("other", [1, 2, 3])
def test_strides_of_merged_convolutions_multiply(stride: int, other: int) -> None:
    parts = {"a": nn.Conv2d(8, 8, 1, stride=stride), "b": nn.Conv2d(8, 8, 1, stride=other)}
    driven = compiled(lambda m, x: m.b(m.a(x)), torch.randn(1, 8, 13, 11), **parts)
    assert driven.sites("merge_pointwise") == ["a"]


# -- what others see -------------------------------------------------------------------------------


class Doubled(nn.Conv2d):
    """A layer that is no convolution any more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_subclass_with_its_own_forward_is_no_match() -> None:
    """H17: it is traced through, so that rules see what it really computes."""
    driven = compiled(both, c=Doubled(8, 8, 3), n=nn.BatchNorm2d(8))
    assert driven.sites("fold_scale") == ["c"]
    assert driven.ops() == ["conv2d"]


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_parametrized_weights(norm: Callable[[nn.Module], nn.Module]) -> None:
    """H17: the weight that each call computes is stored, and rules fold into it."""
    driven = compiled(both, c=norm(nn.Conv2d(8, 8, 3)), n=nn.BatchNorm2d(8))
    assert driven.sites("fold_bn") == ["c"]
    assert driven.ops() == ["conv2d"]


def test_an_inner_value_that_is_returned_too() -> None:
    """H16."""

    def forward(m: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = m.c(x)
        return {"inner": h, "outer": m.n(h)}

    driven = compiled(forward, **pair())
    assert driven.sites("fold_bn") == []
    assert "`h` is also read by the model's output" in driven.reasons("fold_bn")


def test_nested_outputs_keep_their_structure() -> None:
    """H15."""

    def forward(m: Any, x: torch.Tensor, z: torch.Tensor) -> Any:
        return {"a": [m.n(m.c(x)), None], "b": (z * 1, 3)}

    driven = compiled(forward, (X, X), Fn2, **pair())
    assert driven.sites("fold_bn") == ["c"]
    driven.module.recompile()
    out = driven.module(X, X)
    assert out["a"][1] is None
    assert out["b"][1] == 3


def test_train_mode_is_refused_before_any_rule_runs() -> None:
    """H06."""
    with pytest.raises(LissomError) as refused:
        run(Fn(both, **pair()).train(), X, EXACT)
    assert refused.value.diagnostics[0].code == "M001"


def test_frozen_weights_stay_frozen_and_the_model_untouched() -> None:
    """H24."""
    model = random_norms(Fn(both, **pair()))
    model.c.weight.requires_grad_(False)
    names = list(model.state_dict())
    driven = run(model, X, EXACT).check()
    (conv,) = (m for m in driven.module.modules() if isinstance(m, nn.Conv2d))
    assert not conv.weight.requires_grad
    assert conv.bias is not None
    assert conv.bias.requires_grad
    assert list(model.state_dict()) == names
    assert model.c.weight.requires_grad is False


# -- inputs ----------------------------------------------------------------------------------------


def test_other_batch_sizes_and_an_empty_batch() -> None:
    """H13."""
    driven = compiled(both, **pair())
    for size in (0, 1, 5):
        assert driven.difference(torch.randn(size, 8, 6, 6)) < 1e-5


def test_channels_last() -> None:
    """H20."""
    driven = compiled(both, X.to(memory_format=torch.channels_last), **pair())
    assert driven.difference(torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)) < 1e-5


def test_convolution_in_half_and_norm_in_float() -> None:
    """H10."""
    model = random_norms(Fn(both, **pair()))
    model.c.half()
    assert run(model, X.half(), EXACT).difference() < 5e-3


def test_a_batch_of_features_before_a_norm() -> None:
    parts = {"c": nn.Linear(8, 12), "n": nn.BatchNorm1d(12)}
    assert compiled(both, torch.randn(4, 8), **parts).sites("fold_bn_linear") == ["c"]


# -- size ------------------------------------------------------------------------------------------


def test_a_deep_chain_needs_no_recursion() -> None:
    """H25."""
    model = nn.Sequential(*(nn.Identity() for _ in range(1500)), nn.ReLU()).eval()
    driven = run(model, torch.randn(2, 3), library("tidy"))
    assert driven.applied == 1500
    assert driven.ops() == ["relu"]


def test_a_pattern_chain_may_be_long() -> None:
    text = "exact rule r { match { h = relu*(x)\n y = tanh(h) } rewrite { y = tanh(relu(x)) } }"
    model = nn.Sequential(*(nn.ReLU() for _ in range(400)), nn.Tanh()).eval()
    assert run(model, torch.randn(2, 3), text, how="once").check().ops() == ["relu", "tanh"]
