"""Planted bugs in rules of every kind, and what a failed proof says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Applied

from .support import Fn, Fn2, run

# -- rules that are wrong in other ways ------------------------------------------------------------


def code(
    function: Callable[..., Any], x: Any, match: str, rewrite: str, kind: type = Fn, **parts: Any
) -> str:
    text = f"exact rule r {{ match {{\n{match}\n}}\nrewrite {{\n{rewrite}\n}} }}"
    try:
        driven = run(kind(function, **parts), x, text, how="once")
    except LissomError as error:
        return error.diagnostics[0].code
    return "applied" if driven.applied else driven.refusals()[0].reason


NEGATED = "y = clamp(neg(x), max = 0)"
CLOSE = "a = sub(x, 3)\nb = sub(x, 3.001)\ny = sub(a, b)"
X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "match", "rewrite", "expected"),
    [
        (lambda m, x: x.clamp(-6, 6), "y = clamp(x)", "y = x", "V101"),
        (lambda m, x: nn.functional.relu6(x), "y = (relu6 | hardtanh)(x)", "y = relu(x)", "V101"),
        (lambda m, x: x.clamp(-25, 25), "y = clamp(x)", "y = x", "V101"),
        (lambda m, x: x * 0, "y = mul(x, 0)", "y = clamp(x, min = 0, max = 0)", "V101"),
        (lambda m, x: x - x, "y = sub(x, x)", "y = clamp(x, min = 0, max = 0)", "V101"),
        (lambda m, x: x / x, "y = div(x, x)", "y = add(mul(x, 0), 1)", "V101"),
        (lambda m, x: (x + 0).abs().sqrt(), "a = abs(x)\ny = sqrt(a)", "y = sqrt(relu(x))", "V101"),
        (lambda m, x: x.transpose(2, 3), "y = transpose(x)", "y = x", "V101"),
        (lambda m, x: x.relu().neg(), "h = relu(x)\ny = neg(h)", NEGATED, "applied"),
        (lambda m, x: (x - 3) - (x - 3.001), CLOSE, "y = sub(sub(x, 3), sub(x, 3.001))", "applied"),
    ],
)  # fmt: skip
def test_rules_on_values(
    function: Callable[..., Any], match: str, rewrite: str, expected: str
) -> None:
    assert code(function, X, match, rewrite) == expected


def test_an_in_place_op_does_not_hide_a_wrong_rule() -> None:
    """`relu_` overwrites what the rewrite reads; the two sides must not share that memory."""
    assert code(lambda m, x: (x + 1).relu_(), X, "y = relu(x)", "y = x") == "V101"


def test_a_rule_may_use_extents() -> None:
    match = "y = mean(x, dim = (2, 3), keepdim = true)\nx : f[N, C, H, W]"
    mean = lambda m, x: x.mean((2, 3), keepdim=True)  # noqa: E731
    assert code(mean, X, match, "y = div(sum(x, dim = (2, 3), keepdim = true), H * W)") == "applied"
    assert code(mean, X, match, "y = div(sum(x, dim = (2, 3), keepdim = true), H + W)") == "V101"
    wide = torch.randn(2, 8, 33, 33)
    assert code(mean, wide, match, "y = div(sum(x, dim = (2, 3), keepdim = true), 49)") == "V101"


def test_results_keep_shape_and_dtype() -> None:
    assert code(lambda m, x: x.relu(), X, "y = relu(x)", "y = sum(x)") == "S001"
    assert code(lambda m, x: x.relu(), X, "y = relu(x)", "y = cat(x, x, dim = 1)") == "S001"


def test_a_rewrite_that_reads_what_it_removes() -> None:
    assert code(lambda m, x: x.relu().relu(), X, "h = relu(x)\ny = relu(h)", "y = h") == "N005"


def test_integers_are_compared_exactly() -> None:
    tokens = torch.randint(0, 9, (2, 5))
    text = "y = embedding(x) as e"
    assert (
        code(lambda m, x: m.e(x), tokens, text, "y = e(x) from e", e=nn.Embedding(9, 4))
        == "applied"
    )


def test_masks_are_recorded_not_drawn() -> None:
    mask = torch.rand(2, 8, 6, 6) > 0.5
    where = lambda m, x, z: torch.where(z, x, 0.0)  # noqa: E731
    assert code(where, (X, mask), "y = where(c, x, 0)", "y = where(c, x, 0)", kind=Fn2) == "applied"
    assert code(where, (X, mask), "y = where(c, x, 0)", "y = x", kind=Fn2) == "V101"


def test_unsplit_approximations_are_bound_by_their_budget_only() -> None:
    rewrite = "match { y = gelu(x) } rewrite { y = relu(x) }"
    text = f"approx rule r {{ {rewrite} ensure {{ error(y) <= BUDGET }} }}"
    model = Fn(lambda m, x: nn.functional.gelu(x))
    loose, tight = (run(model, X, text.replace("BUDGET", budget)) for budget in ("40%", "1%"))
    assert loose.applied == 1
    (event,) = loose.journal.of(Applied)
    assert [v.how for v in event.verdicts] == ["proved", "not checked", "tested"]
    assert tight.applied == 0
    assert tight.refusals()[0].code == "B001"


def test_error_of_a_site_is_the_relative_distance() -> None:
    model = Fn(lambda m, x: nn.functional.gelu(x))
    text = (
        "approx rule r { match { y = gelu(x) } rewrite { y = relu(x) } ensure { error(y) <= 40% } }"
    )
    (event,) = run(model, X, text).journal.of(Applied)
    reference = nn.functional.gelu(X).double()
    expected = (X.relu().double() - reference).norm() / reference.norm()
    assert event.verdicts[-1].worst == pytest.approx(float(expected), rel=1e-6)
