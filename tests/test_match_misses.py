"""When a pattern does not match: readers outside, places, `unless`, and what a miss says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.rewrite.rules.rule import compile_rule

from .support import Fn, Fn2, misses, run, sites, the_rule

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def pattern(match: str, more: str = "") -> str:
    return f"exact rule r {{ match {{\n{match}\n}}\n{more}\nrewrite {{ y = x }} }}"


def count(function: object, match: str, more: str = "", **parts: object) -> int:
    """How many sites the pattern has in a model of one input, or of two."""
    kind = Fn2 if function.__code__.co_argcount == 3 else Fn  # type: ignore[attr-defined]
    inputs = (X, X + 1) if kind is Fn2 else X
    return len(sites(kind(function, **parts), inputs, pattern(match, more)))


# -- readers outside -------------------------------------------------------------------------------


def forked(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = x.relu()
    return h.tanh() + h


def test_inner_values_have_one_reader() -> None:
    """H16."""
    match = "h = relu(x)\ny = tanh(h)"
    (miss,) = misses(Fn(forked), X, pattern(match))
    assert miss.text() == "`h` is also read by add"
    assert miss.span is not None
    assert miss.span.text == "h = relu(x)"
    assert count(forked, "shared h = relu(x)\ny = tanh(h)") == 1


def test_a_value_that_the_model_returns_is_not_consumed() -> None:
    """H16."""

    def both(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = x.relu()
        return h.tanh(), h

    (miss,) = misses(Fn(both), X, pattern("h = relu(x)\ny = tanh(h)"))
    assert miss.text() == "`h` is also read by the model's output"


def test_a_matched_value_that_the_rewrite_does_not_define_is_not_consumed() -> None:
    (miss,) = misses(
        Fn(lambda m, x: (x.tanh(), x.sigmoid())), X, pattern("y = tanh(x)\nz = sigmoid(x)")
    )
    assert "`z` is also read by" in miss.text()


def test_last_link_of_a_chain_with_another_reader() -> None:
    (miss,) = misses(Fn(forked), X, pattern("k = relu(x)\ny = tanh*(k)\nz = add(y, k)", ""))
    assert miss.text() == "`z` is also read by the model's output"


# -- unless, in, at --------------------------------------------------------------------------------


def test_unless() -> None:
    match, unless = "y = tanh(x)", "unless { z = sigmoid(y) }"
    assert count(lambda m, x: x.tanh().relu(), match, unless) == 1
    assert count(lambda m, x: x.tanh().sigmoid(), match, unless) == 0
    (miss,) = misses(Fn(lambda m, x: x.tanh().sigmoid()), X, pattern(match, unless))
    assert "unless" in miss.text()
    assert miss.span is not None
    assert miss.span.text == unless


def test_unless_means_another_op_than_the_matched_ones() -> None:
    match, unless = "shared h = relu(x)\ny = tanh(h)", "unless { z = tanh(h) }"
    assert count(lambda m, x: x.relu().tanh(), match, unless) == 1

    def two(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = x.relu()
        return h.tanh() + h.tanh()

    assert count(two, match, unless) == 0


def test_unless_may_ask_for_shapes_attributes_and_places() -> None:
    parts = {"a": nn.Conv2d(8, 8, 1), "b": nn.Conv2d(8, 4, 1, stride=2)}
    model = Fn(lambda m, x: m.b(m.a(x)), **parts)
    match = 'y = conv2d(x) as c\nin c : "a"'
    for inside, expected in (
        ("z = conv2d(y) as d\nd.weight : [4, _, _, _]", 0),
        ("z = conv2d(y) as d\nd.weight : [5, _, _, _]", 1),
        ("z = conv2d(y, stride = 2)", 0),
        ("z = conv2d(y, stride = 1)", 1),
        ('z = conv2d(y) as d\nin d : "b"', 0),
        ('z = conv2d(y) as d\nin d : "q"', 1),
    ):
        assert len(sites(model, X, pattern(match, f"unless {{ {inside} }}"))) == expected, inside


def nested() -> nn.Sequential:
    block = [nn.Sequential(nn.ReLU(), nn.Tanh()) for _ in range(2)]
    return nn.Sequential(nn.Sequential(*block), nn.ReLU()).eval()


@pytest.mark.parametrize(
    ("glob", "expected"),
    [("0.1.*", ["0.1.0"]), ("0", ["0.0.0", "0.1.0"]), ("*", ["0.0.0", "0.1.0", "1"]), ("2", [])],
)
def test_places(glob: str, expected: list[str]) -> None:
    inside = pattern(f'y = relu(x) as c\nin c : "{glob}"')
    assert [site.name for site in sites(nested(), X, inside)] == expected
    rule = the_rule("exact rule r { match { y = relu(x) } rewrite { y = clamp(x, min = 0) } }")
    assert run(nested(), X, [replace(rule, at=glob)], how="once").check().sites() == expected


# -- misses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "reason", "span"),
    [
        (lambda m, x: x.sigmoid().tanh().relu(), "tanh expected, found the model's output", "tanh"),
        (lambda m, x: (x.relu() * 2).tanh(), "tanh expected, found mul", "tanh"),
        (lambda m, x: x.relu().cumsum(0).tanh(), "tanh expected, found cumsum", "tanh"),
        (lambda m, x: torch.fft.fft(x.relu()).real.tanh(), "no op is declared", "tanh"),
    ],
)
def test_structural_miss(function: Callable[..., torch.Tensor], reason: str, span: str) -> None:
    (miss,) = misses(Fn(function), X, pattern("h = relu(x)\ny = tanh(h)"))
    assert reason in miss.text()
    assert miss.span is not None
    assert miss.span.text == span
    assert miss.node is not None


def test_guards_fail_in_textual_order_with_their_message() -> None:
    conv = Fn(lambda m, x: m.c(x), c=nn.Conv2d(8, 4, 3))
    said = "{O} outputs of {I}, {c}, {nothing}"
    guards = f'where {{ K == 3 else "k"\nO >= I else "{said}"\nfalse else "never" }}'
    (miss,) = misses(conv, X, pattern("y = conv2d(x) as c\nc.weight : [O, I, K, K]", guards))
    assert miss.text() == "4 outputs of 8, c, {nothing}"
    assert miss.span is not None
    assert miss.span.text.startswith("O >= I")


def test_the_nearest_miss_is_kept() -> None:
    """Of two ways to match, the one that came to the guards is worth telling."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x.relu() * x.sigmoid()

    text = pattern("a = relu(x)\ny = mul(a, b)", 'where { false else "told" }')
    (miss,) = misses(Fn(forward), X, text)
    assert miss.text() == "told"


def test_later_stages_rank_higher() -> None:
    def rank(match: str, more: str = "") -> tuple[int, int]:
        (miss,) = misses(Fn(lambda m, x: x.relu().tanh().tanh()), X, pattern(match, more))
        return miss.rank

    structure = rank("h = tanh(x)\ny = relu(h)")
    shape = rank("y = relu(x)\nx : f[N]")
    guard = rank("y = relu(x)", "where { 1 == 1\n 1 == 2 }")
    earlier = rank("y = relu(x)", "where { 1 == 2\n 1 == 1 }")
    assert structure < shape < earlier < guard


# -- errors of the author --------------------------------------------------------------------------


def test_a_pattern_that_is_not_connected() -> None:
    with pytest.raises(LissomError) as caught:
        the_rule(pattern("y = relu(x)\nz = tanh(w)"))
    assert caught.value.diagnostics[0].code == "P001"


@pytest.mark.parametrize("match", ["y = relu*(x)", "y = relu?(x)", "x : f[N]"])
def test_a_pattern_without_an_op_that_is_always_there(match: str) -> None:
    with pytest.raises(LissomError) as caught:
        the_rule(pattern(match))
    assert caught.value.diagnostics[0].code == "P001"


def test_an_error_in_a_guard_names_the_rule_and_the_site() -> None:
    with pytest.raises(LissomError) as caught:
        run(nested(), X, pattern("y = tanh(x) as c", "where { c.weight == 1 }"))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "T003"
    assert any(label.where.startswith("0.0.1") for label in diagnostic.labels)


def test_an_unknown_argument_is_named() -> None:
    (source,) = parse(pattern("y = relu(x)"), "r.lissom").all(t.Rule)
    with pytest.raises(LissomError, match="no parameter `q`"):
        compile_rule(source, {"q": 1})
