"""Rules that make a mistake which compilers have made: none of them gets through.

Each test is called by its row in docs/hard_cases.md, and holds the right rule beside the wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError

from .support import Fn, run

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def verdict(
    model: nn.Module, x: Any, text: str, functions: dict[str, Callable[..., Any]] | None = None
) -> str:
    """What becomes of the rule's only site: `applied`, a reason to refuse, or an error's code."""
    try:
        driven = run(model, x, text, how="once", functions=functions)
    except LissomError as error:
        return error.diagnostics[0].code
    driven.module.graph.lint()
    return "applied" if driven.applied == 1 else driven.reasons()[0]


def conv(**more: Any) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, **{"padding": 1, **more})


# -- S16: a gain that only broadcasts --------------------------------------------------------------

LAYER_NORM = """
extern fn per_channel(k: any, channels: int, axis: int, rank: int) -> any pure
extern fn some_of(k: any, channels: int) -> f[C] pure
extern fn rank(x: value) -> int pure

exact rule fuse_layer_norm {
  match {
    u = mean(x, dim = -1, keepdim = true)
    a = sub(x, u)
    q = pow(a, 2)
    v = mean(q, dim = -1, keepdim = true)
    w = add(v, e)
    s = sqrt(w)
    z = div(a, s)
    y = mul(z, k)
    x : f[..., C]
  }
  let { g = GAIN }
  where { known(g)  else "the gain varies along other axes" }
  rewrite { y = layer_norm(x, weight = g, eps = e) }
}
"""
RIGHT, WRONG = "per_channel(k, C, -1, rank(x))", "some_of(k, C)"


def some_of(k: Tensor, channels: int) -> Tensor:
    """The first values of the gain, as if it had one for each feature."""
    return k.flatten().repeat(channels)[:channels]


@pytest.mark.parametrize(
    ("shape", "right", "wrong"),
    [
        ((8,), "applied", "applied"),
        ((1,), "applied", "applied"),
        ((6, 1), "the gain varies along other axes", "V101"),
        ((6, 8), "the gain varies along other axes", "V101"),
    ],
)
def test_s16_a_fused_layer_norm(shape: tuple[int, ...], right: str, wrong: str) -> None:
    """microsoft/onnxruntime#25855, #31980."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        apart = x - x.mean(-1, keepdim=True)
        return apart / (apart.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * m.g

    torch.manual_seed(0)
    model = Fn(forward, g=nn.Parameter(torch.rand(shape) + 0.5))
    x, functions = torch.randn(2, 6, 8), {"some_of": some_of}
    assert verdict(model, x, LAYER_NORM.replace("GAIN", RIGHT), functions) == right
    assert verdict(model, x, LAYER_NORM.replace("GAIN", WRONG), functions) == wrong


# -- S17: casts there and back ---------------------------------------------------------------------

CASTS = """
exact rule one_cast {
  match {
    h = cast(x, dtype = a)
    y = cast(h, dtype = b)
  }
  rewrite { y = cast(x, dtype = b) }
}
"""


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: (x * 3).int().float(), "V101"),
        (lambda m, x: (x * 3).half().float(), "V101"),
        (lambda m, x: (x * 3).bool().float(), "V101"),
        (lambda m, x: (x * 3).double().float(), "applied"),
    ],
)
def test_s17_a_rule_that_drops_the_first_cast(function: Callable[..., Any], expected: str) -> None:
    """microsoft/onnxruntime#4039: only what widens can go."""
    assert verdict(Fn(function), X, CASTS) == expected


# -- S28: int8 of a row of zeros -------------------------------------------------------------------

INT8 = """
extern fn round_trip(w: f[O, ...]) -> f[O, ...] pure

approx rule to_int8 {
  match { y = linear(x) as l }
  let { w = round_trip(l.weight) }
  perturb { l.weight := w }
  rewrite { y = l(x, weight = w) from l }
  ensure { error(y) <= 5% on calib }
}
"""


def naive(w: Tensor) -> Tensor:
    scale = w.abs().amax(1, keepdim=True) / 127
    return (w / scale).round() * scale


def careful(w: Tensor) -> Tensor:
    scale = w.abs().amax(1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (w / scale).round() * scale


LOST = "`error(y) <= 5% on calib` does not hold: nan against 5%"


@pytest.mark.parametrize(
    ("row", "function", "expected"),
    [
        (None, naive, "applied"),
        (0.0, naive, LOST),
        (0.0, careful, "applied"),
        (float("inf"), naive, LOST),
        (float("inf"), careful, LOST),
    ],
)
def test_s28_int8_of_a_strange_row(
    row: float | None, function: Callable[..., Any], expected: str
) -> None:
    """H11: 0 / 0 is NaN in every output; both sides agree on it, so only the budget can tell."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8)).eval()
    if row is not None:
        with torch.no_grad():
            model[0].weight[3] = row
    x = torch.randn(4, 16)
    assert verdict(model, x, INT8, {"round_trip": function}) == expected


# -- S29: equalisation across an activation --------------------------------------------------------

EQUALISE = """
extern fn balance(a: f[O, ...], b: f[P, O, ...]) -> f[O] pure

exact rule equalise {
  match {
    h = conv2d(x) as a
    r = ACTIVATION(h) as m
    y = conv2d(r) as b
  }
  let { s = balance(a.weight, b.weight) }
  rewrite {
    g = a(x, weight = scale(a.weight, 1 / s, axis = 0), bias = (a.bias or 0) / s) from a
    k = m(g) from m
    y = b(k, weight = scale(b.weight, s, axis = 1)) from b
  }
}
"""


def balance(a: Tensor, b: Tensor) -> Tensor:
    """Nagel et al. 2019, arXiv:1906.04721, equation 11."""
    first, second = a.flatten(1).abs().amax(1), b.transpose(0, 1).flatten(1).abs().amax(1)
    return (first / second).sqrt()


@pytest.mark.parametrize(
    ("activation", "name", "expected"),
    [
        (nn.ReLU(), "relu", "applied"),
        (nn.LeakyReLU(0.1), "leaky_relu", "applied"),
        (nn.ReLU6(), "hardtanh", "V101"),
        (nn.Hardtanh(0, 6), "hardtanh", "V101"),
        (nn.SiLU(), "silu", "V101"),
    ],
)
def test_s29_equalisation(activation: nn.Module, name: str, expected: str) -> None:
    """act(s x) = s act(x) for s > 0 holds for relu; relu6 stops at 6."""
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.b(m.r(m.a(x))), a=conv(), r=activation, b=conv())
    text = EQUALISE.replace("ACTIVATION", name)
    assert verdict(model, X, text, {"balance": balance}) == expected


# -- S31: identities that infinities break ---------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (2, 8, 6, 6)])
@pytest.mark.parametrize(
    ("match", "result", "function"),
    [
        ("mul(x, 0)", "clamp(x, min = 0, max = 0)", lambda m, x: x * 0),
        ("sub(x, x)", "clamp(x, min = 0, max = 0)", lambda m, x: x - x),
        ("div(x, x)", "clamp(x, min = 1, max = 1)", lambda m, x: x / x),
    ],
)
def test_s31_rules_that_forget_infinities(
    match: str, result: str, function: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    """Few numbers or many: each rule is tried on NaN, on infinities and on zero."""
    text = f"exact rule r {{ match {{ y = {match} }} rewrite {{ y = {result} }} }}"
    assert verdict(Fn(function), torch.randn(shape), text) == "V101"


def test_s31_both_sides_may_be_nan_at_the_same_places() -> None:
    text = "exact rule r { match { y = sub(x, x) } rewrite { y = mul(x, 0) } }"
    assert verdict(Fn(lambda m, x: x - x), torch.randn(5), text) == "applied"
