"""The verifier finds planted bugs and leaves correct rewrites alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Applied

from .support import random_norms, run

LINEAR = """
approx rule low_rank(R: int = 8) {
  match {
    y = linear(x) as l
    l.weight : [O, I]
  }
  let { (u, s, v) = svd(l.weight) }
  perturb { l.weight := (u[:, :R] * s[:R]) @ v[:R] }
  rewrite {
    h = linear(x, weight = FIRST, bias = none) from l
    y = linear(h, weight = LAST, bias = BIAS) from l
  }
}
"""

CONV = """
approx rule low_rank(R: int = 8) {
  match {
    y = conv2d(x, stride = s, padding = p, dilation = d, groups = 1) as l
    l.weight : [O, I, K, L]
  }
  let { (u, e, v) = svd(reshape(l.weight, (O, I * K * L))) }
  perturb { l.weight := reshape((u[:, :R] * e[:R]) @ v[:R], (O, I, K, L)) }
  rewrite {
    h = conv2d(x, weight = reshape(FIRST, (size_of(FIRST), I, K, L)), bias = none,
               groups = 1, stride = s, padding = p, dilation = d) from l
    y = conv2d(h, weight = reshape(LAST, (O, size_of(FIRST), 1, 1)), bias = BIAS, groups = 1) from l
  }
}
"""

FACTORS = {"FIRST": "v[:R]", "LAST": "u[:, :R] * {s}[:R]", "BIAS": "l.bias"}
"""A correct rewrite; each planted bug replaces some of it."""
MUTANTS: dict[str, dict[str, str]] = {
    "bias dropped": {"BIAS": "none"},
    "bias added twice": {"BIAS": "l.bias + l.bias"},
    "rank off by one": {"FIRST": "v[:R - 1]", "LAST": "u[:, :R - 1] * {s}[:R - 1]"},
    "factors stored as float16": {"FIRST": "half(v[:R])", "LAST": "half(u[:, :R] * {s}[:R])"},
    "last singular pairs mismatched": {"FIRST": "swapped(v[:R])"},
}


def half(w: Tensor) -> Tensor:
    return w.to(torch.float16).to(w.dtype)


def swapped(w: Tensor) -> Tensor:
    """The last two rows exchanged."""
    order = [*range(w.shape[0] - 2), w.shape[0] - 1, w.shape[0] - 2]
    return w[order]


FUNCTIONS: dict[str, Callable[..., Any]] = {"half": half, "swapped": swapped, "size_of": len}


def written(template: str, changed: dict[str, str]) -> str:
    singular = "s" if template is LINEAR else "e"
    for name, text in {**FACTORS, **changed}.items():
        template = template.replace(name, text.format(s=singular))
    return template


def verdict(model: nn.Module, x: Tensor, text: str, **args: Any) -> str:
    """What becomes of the rule's site: `applied`, a reason to refuse, or the code of an error."""
    torch.manual_seed(0)
    try:
        driven = run(model, x, text, how="once", functions=FUNCTIONS, **args)
    except LissomError as error:
        return error.diagnostics[0].code
    return "applied" if driven.applied == 1 else driven.reasons()[0]


def linear_model(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(inputs)
    return nn.Sequential(nn.Linear(inputs, outputs)).to(dtype).eval(), torch.randn(2, inputs).to(
        dtype
    )


def conv_model(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(inputs)
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(conv).to(dtype).eval(), torch.randn(1, inputs, 9, 9).to(dtype)


# -- the five bugs that an error budget hides ------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (96, 40)])
def test_low_rank_linear_and_its_mutants(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    model, x = linear_model(inputs, outputs, dtype)
    rank = max(4, inputs // 8)
    assert verdict(model, x, written(LINEAR, {}), R=rank) == "applied"
    for name, changed in MUTANTS.items():
        assert verdict(model, x, written(LINEAR, changed), R=rank) == "V101", name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [512, 1024])
def test_wide_low_rank_linear_and_its_mutants(width: int, dtype: torch.dtype) -> None:
    model, x = linear_model(width, width, dtype)
    assert verdict(model, x, written(LINEAR, {}), R=width // 8) == "applied"
    for name, changed in MUTANTS.items():
        assert verdict(model, x, written(LINEAR, changed), R=width // 8) == "V101", name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 32), (48, 48)])
def test_low_rank_conv_and_its_mutants(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    model, x = conv_model(inputs, outputs, dtype)
    assert verdict(model, x, written(CONV, {}), R=8) == "applied"
    for name, changed in MUTANTS.items():
        assert verdict(model, x, written(CONV, changed), R=8) == "V101", name


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_low_rank_conv_and_its_mutants_at_full_width(name: str | None) -> None:
    model, x = conv_model(512, 512, torch.float32)
    expected = "applied" if name is None else "V101"
    assert verdict(model, x, written(CONV, MUTANTS.get(name or "", {})), R=64) == expected


# -- wrong batch norm folds ------------------------------------------------------------------------

FOLD = """
exact rule fold {
  match {
    h = conv2d(x) as c
    y = batch_norm(h) as n
  }
  let {
    g = GAIN
    b = SHIFT
  }
  rewrite { y = c(x, weight = WEIGHT, bias = BIAS) from c }
}
"""
RIGHT = {
    "GAIN": "n.weight / sqrt(n.running_var + n.eps)",
    "SHIFT": "n.bias - n.running_mean * g",
    "WEIGHT": "scale(c.weight, g, axis = 0)",
    "BIAS": "c.bias * g + b",
}
FOLD_MUTANTS: dict[str, dict[str, str]] = {
    "epsilon dropped": {"GAIN": "n.weight / sqrt(n.running_var)"},
    "epsilon ten times too small": {"GAIN": "n.weight / sqrt(n.running_var + n.eps * 0.1)"},
    "epsilon outside the root": {"GAIN": "n.weight / (sqrt(n.running_var) + n.eps)"},
    "root forgotten": {"GAIN": "n.weight / (n.running_var + n.eps)"},
    "gamma forgotten": {"GAIN": "1 / sqrt(n.running_var + n.eps)"},
    "channels reversed": {"WEIGHT": "scale(c.weight, reversed(g), axis = 0)"},
    "scale on the input axis": {"WEIGHT": "scale(c.weight, g, axis = 1)"},
    "mean of the gains": {"WEIGHT": "c.weight * mean(g)"},
    "bias not scaled": {"BIAS": "c.bias + b"},
    "mean not subtracted": {"SHIFT": "n.bias"},
    "sign of the mean": {"SHIFT": "n.bias + n.running_mean * g"},
    "beta forgotten": {"SHIFT": "0 - n.running_mean * g"},
    "gamma made positive": {"GAIN": "abs(n.weight) / sqrt(n.running_var + n.eps)"},
    "weights rounded to float16": {"WEIGHT": "half(scale(c.weight, g, axis = 0))"},
    "bias rounded to bfloat16": {"BIAS": "brief(c.bias * g + b)"},
    "bias of the convolution dropped": {"BIAS": "b"},
    "kernel flipped": {"WEIGHT": "flipped(scale(c.weight, g, axis = 0))"},
}

FOLD_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "half": half,
    "reversed": lambda g: g.flip(0),
    "brief": lambda b: b.to(torch.bfloat16).to(b.dtype),
    "flipped": lambda w: w.flip(2, 3),
}


def fold(changed: dict[str, str]) -> str:
    text = FOLD
    for name, value in {**RIGHT, **changed}.items():
        text = text.replace(name, value)
    return text


def folded(model: nn.Module, x: Tensor, changed: dict[str, str]) -> str:
    try:
        driven = run(model, x, fold(changed), how="once", functions=FOLD_FUNCTIONS)
    except LissomError as error:
        return error.diagnostics[0].code
    return "applied" if driven.applied == 1 else driven.reasons()[0]


def conv_norm(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    pair = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
    return random_norms(pair, seed).to(dtype)


@pytest.mark.parametrize("name", FOLD_MUTANTS)
def test_every_wrong_fold_is_found(name: str) -> None:
    """S06."""
    x = torch.randn(2, 6, 8, 8)
    for seed, dtype in ((0, torch.float32), (1, torch.float32), (2, torch.bfloat16)):
        assert folded(conv_norm(seed, dtype), x.to(dtype), FOLD_MUTANTS[name]) == "V101"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_right_fold_is_no_false_alarm(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 8, 8).to(dtype)
    for seed in range(4):
        assert folded(conv_norm(seed, dtype), x, {}) == "applied"


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e9, 1e15])
def test_tiny_and_huge_weights_are_no_false_alarm(scale: float) -> None:
    """H12."""
    model = conv_norm(0)
    with torch.no_grad():
        model[0].weight *= scale  # type: ignore[index, operator]
    assert folded(model, torch.randn(2, 6, 8, 8), {}) == "applied"


@pytest.mark.parametrize("scale", [1e-20, 1e9])
@pytest.mark.parametrize(
    "name", ["gamma forgotten", "bias not scaled", "sign of the mean", "kernel flipped"]
)
def test_wrong_folds_of_scaled_layers_are_found(name: str, scale: float) -> None:
    """Weights and constants at the same scale: a bug in either is visible."""
    model = conv_norm(0)
    with torch.no_grad():
        conv, norm = model.children()
        for tensor in (conv.weight, conv.bias, norm.running_mean, norm.bias):
            tensor *= scale  # type: ignore[operator]
    assert folded(model, torch.randn(2, 6, 8, 8), FOLD_MUTANTS[name]) == "V101"


def test_cancellation_is_no_false_alarm() -> None:
    """H12: The batch norm subtracts nearly all of what the convolution adds."""
    model = conv_norm(0)
    with torch.no_grad():
        model[0].bias.fill_(1e4)  # type: ignore[index, operator, union-attr]
        model[1].running_mean.fill_(1e4 + 0.5)  # type: ignore[index, operator, union-attr]
    assert folded(model, torch.randn(2, 6, 8, 8), {}) == "applied"


def test_sums_of_25088_terms_are_no_false_alarm() -> None:
    torch.manual_seed(0)
    model = random_norms(nn.Sequential(nn.Linear(25088, 64), nn.BatchNorm1d(64)))
    text = fold({}).replace("conv2d", "linear")
    driven = run(model, torch.randn(2, 25088), text, functions=FOLD_FUNCTIONS)
    assert driven.applied == 1
    (event,) = driven.journal.of(Applied)
    assert all(
        v.worst <= 0.5 * v.tolerance for v in event.verdicts if v.how == "tested" and v.worst
    )
    driven.check()


def test_positive_sums_of_25088_terms_are_no_false_alarm() -> None:
    """All weights of one sign: errors cannot average out against the magnitude."""
    torch.manual_seed(0)
    model = random_norms(nn.Sequential(nn.Linear(25088, 16), nn.BatchNorm1d(16)))
    with torch.no_grad():
        model[0].weight.abs_()  # type: ignore[operator, union-attr]
    assert run(model, torch.rand(2, 25088), fold({}).replace("conv2d", "linear")).applied == 1


# -- nan and infinity ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_strange_weights_stay_where_they_are(value: float) -> None:
    """H11, I44."""
    model = conv_norm(0)
    with torch.no_grad():
        model[0].weight[2, 1, 1, 1] = value  # type: ignore[index, operator]
    x = torch.randn(2, 6, 8, 8)
    driven = run(model, x, fold({}))
    assert driven.applied == 1
    assert driven.difference() < 1e-5


@pytest.mark.parametrize("name", FOLD_MUTANTS)
def test_a_nan_weight_does_not_hide_a_bug(name: str) -> None:
    """H11."""
    model = conv_norm(0)
    with torch.no_grad():
        model[0].weight[2] = float("nan")  # type: ignore[index, operator]
    assert folded(model, torch.randn(2, 6, 8, 8), FOLD_MUTANTS[name]) == "V101"


def test_an_overflow_of_the_models_dtype_is_refused_with_the_reason() -> None:
    """H12."""
    model = conv_norm(0)
    with torch.no_grad():
        model[0].weight *= 1e4  # type: ignore[index, operator]
        model[1].running_var.fill_(1e-6)  # type: ignore[index, operator, union-attr]
        model[1].running_mean.zero_()  # type: ignore[operator, union-attr]
        model[1].eps = 1e-7  # type: ignore[index]
    driven = run(model.to(torch.float16), torch.randn(2, 6, 8, 8).half() * 1e-5, fold({}))
    assert driven.applied == 0
    (refused,) = driven.refusals()
    assert refused.code == "V105"
    assert refused.site == "0"


# -- what the author is told -----------------------------------------------------------------------


def test_a_failed_proof_names_rule_site_and_numbers() -> None:
    with pytest.raises(LissomError) as caught:
        run(conv_norm(0), torch.randn(2, 6, 8, 8), fold(FOLD_MUTANTS["bias not scaled"]))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "V101"
    assert any(label.where.startswith("0 ") for label in diagnostic.labels)
    assert "largest difference" in diagnostic.notes[0]


def test_a_numeric_function_that_writes_to_weights_is_impure() -> None:
    before = conv_norm(0)
    x = torch.randn(2, 6, 8, 8)
    text = fold({"WEIGHT": "spoiled(c.weight)"})
    for dtype in (torch.float32, torch.float64):
        model = conv_norm(0).to(dtype)
        with pytest.raises(LissomError) as caught:
            run(model, x.to(dtype), text, functions={"spoiled": lambda w: w.mul_(0)})
        assert caught.value.diagnostics[0].code == "G001"
        first, second = model.get_parameter("0.weight"), before.get_parameter("0.weight")
        assert torch.equal(first, second.to(dtype))
