"""Polynomials with floors: what the normal form proves, against plain integer arithmetic."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lissom.grammar.algebra.substitution import evaluate, substitute
from lissom.grammar.algebra.symbolic import (
    Poly,
    TooLarge,
    common,
    const,
    divide,
    floordiv,
    greatest,
    least,
    linear_in,
    modulo,
    power,
    symbol,
)

H, K, S, T, P, D = map(symbol, ("H", "K", "s", "t", "p", "d"))
NAMES = ("H", "K", "s", "t", "p", "d")


def conv(size: Poly, kernel: Poly, stride: Poly, padding: Poly, dilation: Poly) -> Poly:
    return floordiv(size + 2 * padding - dilation * (kernel - 1) - 1, stride) + 1


def test_equal_polynomials_have_one_form() -> None:
    assert (H + K) * (H - K) == H * H - K * K
    assert (H - H).is_zero
    assert hash(H + K) == hash(K + H)


def test_strides_of_two_convolutions_multiply() -> None:
    one = const(1)
    twice = conv(conv(H, one, S, const(0), one), one, T, const(0), one)
    assert twice == conv(H, one, S * T, const(0), one)


def test_same_padding_keeps_the_size() -> None:
    assert conv(H, const(3), const(1), const(1), const(1)) == H
    assert conv(H, 2 * K + 1, const(1), K * D, D) == H


def test_unequal_strides_are_not_equal() -> None:
    one = const(1)
    assert conv(H, K, S, P, one) != conv(H, K, S * S, P, one)


def test_whole_multiples_leave_a_floor() -> None:
    assert floordiv(6 * H + 2, const(3)) == 2 * H
    assert floordiv(S * H + S * K + 1, S) == H + K + floordiv(const(1), S)
    assert modulo(4 * H + 3, const(4)) == const(3)


def test_a_floor_with_a_factor_is_not_merged() -> None:
    """(2 * (H // 4) + 1) // 3 has no simpler form; merging it as if the factor were 1 is wrong."""
    inner = 2 * floordiv(H, const(4)) + 1
    outer = floordiv(inner, const(3))
    for h in range(50):
        assert evaluate(outer, {"H": h}) == (2 * (h // 4) + 1) // 3


def test_extremes_of_numbers_are_numbers() -> None:
    assert least(const(3), const(5)) == const(3)
    assert greatest(H, H) == H
    assert evaluate(least(H, K), {"H": 4, "K": 9}) == 4


def test_division_by_a_common_factor() -> None:
    assert divide(H * K * S, H * K) == S
    assert divide(H * K + 1, H) is None
    assert common(H * H * K + H * S) == H
    assert common(H * P + P, lambda name: name != "p") == const(1)


def test_linear_parts() -> None:
    assert linear_in(H * K + S, "H") == (K, S)
    assert linear_in(H * H, "H") is None
    assert linear_in(floordiv(H, K) + H, "H") is None


def test_too_large_is_refused() -> None:
    wide = sum((symbol(f"X{i}") for i in range(30)), const(0))
    with pytest.raises(TooLarge):
        power(wide, 16)


def test_text() -> None:
    assert str(conv(H, K, S, P, D)) == "(H + d + 2*p - K*d - 1)//s + 1"
    assert str(const(0)) == "0"
    assert str(-H) == "-H"
    assert str(K * floordiv(H, S)) == "(H//s)*K"


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> tuple[Poly, object]:
    """A polynomial, and the same computation as a function of plain integers."""
    if depth == 0 or draw(st.booleans()):
        name = draw(st.sampled_from(NAMES))
        number = draw(st.integers(-3, 5))
        return (
            (symbol(name), lambda v: v[name])
            if draw(st.booleans())
            else (
                const(number),
                lambda v: number,
            )
        )
    left, f = draw(expressions(depth=depth - 1))
    right, g = draw(expressions(depth=depth - 1))
    op = draw(st.sampled_from("+-*/"))
    if op == "+":
        return left + right, lambda v: f(v) + g(v)
    if op == "-":
        return left - right, lambda v: f(v) - g(v)
    if op == "*":
        return left * right, lambda v: f(v) * g(v)
    name = draw(st.sampled_from(("s", "t")))
    return floordiv(left, symbol(name)), lambda v: f(v) // v[name]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(expressions())
def test_normal_form_keeps_the_value(pair: tuple[Poly, object]) -> None:
    poly, function = pair
    source = random.Random(1)
    for _ in range(5):
        values = {name: source.randint(1, 9) for name in NAMES}
        assert evaluate(poly, values) == function(values)  # type: ignore[operator]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(expressions(), expressions(depth=2))
def test_substitution_commutes_with_evaluation(
    pair: tuple[Poly, object], other: tuple[Poly, object]
) -> None:
    poly, function = pair
    inserted, value = other
    values = dict(zip(NAMES, (5, 3, 2, 4, 1, 6), strict=True))
    replaced = {**values, "H": value(values)}  # type: ignore[operator]
    assert evaluate(substitute(poly, {"H": inserted}), values) == function(replaced)  # type: ignore[operator]
