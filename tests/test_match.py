"""What patterns match, what they do not, and what a miss says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lissom.grammar import tree as t
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.parse import parse
from lissom.rewrite.rule import compile_rule

from .support import Fn, Fn2, misses, run, sites, the_rule

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def pattern(match: str, more: str = "") -> str:
    return f"exact rule r {{ match {{\n{match}\n}}\n{more}\nrewrite {{ y = x }} }}"


def count(function: object, match: str, more: str = "", **parts: object) -> int:
    """How many sites the pattern has in a model of one input, or of two."""
    kind = Fn2 if function.__code__.co_argcount == 3 else Fn  # type: ignore[attr-defined]
    inputs = (X, X + 1) if kind is Fn2 else X
    return len(sites(kind(function, **parts), inputs, pattern(match, more)))


# -- structure -------------------------------------------------------------------------------------


def test_two_ops_in_a_row() -> None:
    assert count(lambda m, x: x.relu().tanh(), "h = relu(x)\ny = tanh(h)") == 1
    assert count(lambda m, x: x.tanh().relu(), "h = relu(x)\ny = tanh(h)") == 0


def spelled(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda m, x: function(x)


def test_all_spellings_of_an_op_match() -> None:
    for spelling in (
        torch.relu,
        F.relu,
        torch.Tensor.relu,
        lambda x: F.relu(x + 0.5, inplace=True),
    ):
        assert count(spelled(spelling), "y = relu(x)") == 1
    assert count(lambda m, x: m.a(x), "y = relu(x)", a=nn.ReLU()) == 1


def test_diamond() -> None:
    match = "h = relu(x)\na = tanh(h)\nb = sigmoid(h)\ny = add(a, b)"

    def diamond(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = x.relu()
        return h.sigmoid() + h.tanh()

    assert count(diamond, match) == 1
    assert count(lambda m, x: x.relu().sigmoid() + x.relu().tanh(), match) == 0


def test_two_roots_over_one_input() -> None:
    match = "y = tanh(x)\nz = sigmoid(x)"
    rule = f"exact rule r {{ match {{\n{match}\n}}\nrewrite {{ y = x\n z = x }} }}"
    assert len(sites(Fn(lambda m, x: (x.tanh(), x.sigmoid())), X, rule)) == 1


def test_parts_of_an_op_with_several_results() -> None:
    match = "(a, b) = chunk(x, chunks = 2, dim = 1)\ny = add(a, b)"

    def halves(first: int, second: int, n: int = 2) -> object:
        def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
            parts = x.chunk(n, 1)
            return parts[first] + parts[second]

        return forward

    assert count(halves(0, 1), match) == 1
    assert count(halves(1, 0), match) == 1, "addition commutes"
    assert count(halves(0, 1, n=4), match) == 0
    assert count(halves(0, 0), match) == 0, "the second part is never taken out"


def test_a_part_that_no_name_stands_for_may_not_be_read_outside() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, 1)
        return a.tanh() + b

    (miss,) = misses(Fn(forward), X, pattern("(a, _) = chunk(x, chunks = 2, dim = 1)\ny = tanh(a)"))
    assert "also read by" in miss.text()


def test_parts_that_are_not_swapped_where_the_op_does_not_commute() -> None:
    match = "(a, b) = chunk(x, chunks = 2, dim = 1)\ny = sub(a, b)"

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, 1)
        return b - a

    assert count(forward, match) == 0


def test_alternatives() -> None:
    match = "y = (relu | tanh)(x)"
    assert count(lambda m, x: x.relu().tanh().sigmoid(), match) == 2


def test_optional_op_present_and_absent() -> None:
    match = "h = relu(x)\nk = dropout?(h)\ny = tanh(k)"
    assert count(lambda m, x: x.relu().tanh(), match) == 1
    assert count(lambda m, x: m.d(x.relu()).tanh(), match, d=nn.Dropout()) == 1
    assert count(lambda m, x: x.relu().sigmoid().tanh(), match) == 0


def test_handle_of_an_absent_op_is_none() -> None:
    match = "h = relu(x)\nk = dropout?(h) as d\ny = tanh(k)"
    only_with = "where { known(d) }"
    assert count(lambda m, x: x.relu().tanh(), match, only_with) == 0
    assert count(lambda m, x: m.d(x.relu()).tanh(), match, only_with, d=nn.Dropout()) == 1
    assert count(lambda m, x: x.relu().tanh(), match, "where { d == none }") == 1


@pytest.mark.parametrize("length", [0, 1, 3])
def test_chain(length: int) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = x.sigmoid()
        for _ in range(length):
            h = h.relu()
        return h.tanh()

    (site,) = sites(Fn(forward), X, pattern("h = sigmoid(x)\nk = relu*(h)\ny = tanh(k)"))
    assert len(site.calls) == length + 2


def test_chain_takes_the_longest_run() -> None:
    (site,) = sites(
        Fn(lambda m, x: x.relu().relu().relu().tanh()), X, pattern("k = relu*(x)\ny = tanh(k)")
    )
    assert len(site.calls) == 4


def test_chain_leaves_a_link_to_a_later_op() -> None:
    """`relu*` could swallow the relu that the pattern asks for by name."""
    model = Fn(lambda m, x: x.tanh().relu().relu().sigmoid())
    (site,) = sites(model, X, pattern("h = tanh(x)\nk = relu*(h)\nj = relu(k)\ny = sigmoid(j)"))
    assert len(site.calls) == 4


def test_a_chain_and_an_op_never_share_a_node() -> None:
    model = Fn(lambda m, x: x.relu().relu().relu())
    for site in sites(model, X, pattern("h = relu*(x)\ny = relu(h)")):
        assert len({call.node for call in site.calls}) == len(site.calls)


def test_a_link_that_others_read_ends_the_chain() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = x.relu()
        b = a.relu()
        return b.tanh() + a

    (site,) = sites(Fn(forward), X, pattern("k = relu*(x)\ny = tanh(k)"))
    assert len(site.calls) == 2


def test_links_of_a_chain_have_the_operands_of_the_pattern() -> None:
    match = "k = mul*(x, 2)\ny = tanh(k)"
    (site,) = sites(Fn(lambda m, x: (2 * (x * 3 * 2)).tanh()), X, pattern(match))
    assert len(site.calls) == 3, "x * 3 is no link; 2 * x is one, since multiplication commutes"


def test_wildcard_op_and_wildcard_operand() -> None:
    assert count(lambda m, x: x.sigmoid().tanh(), "h = _(x)\ny = tanh(h)") == 1
    assert count(lambda m, x, z: torch.tanh(x * z), "h = mul(x, _)\ny = tanh(h)") == 1


def test_rest_operands() -> None:
    match = "y = cat(x, more...)"
    (site,) = sites(Fn(lambda m, x: torch.cat([x, x.relu(), x.tanh()], 1)), X, pattern(match))
    assert len(site.bindings.values["more"]) == 2
    (site,) = sites(Fn(lambda m, x: torch.cat([x], 1)), X, pattern(match))
    assert site.bindings.values["more"] == ()


def test_fewer_operands_than_the_call_has_do_not_match() -> None:
    assert count(lambda m, x: torch.cat([x, x], 1), "y = cat(x)") == 0
    assert count(lambda m, x: torch.cat([x], 1), "y = cat(x)") == 1


# -- names -----------------------------------------------------------------------------------------


def test_the_same_name_is_the_same_value() -> None:
    assert count(lambda m, x: x * x.sigmoid(), "s = sigmoid(x)\ny = mul(x, s)") == 1
    assert count(lambda m, x, z: z * x.sigmoid(), "s = sigmoid(x)\ny = mul(x, s)") == 0


def test_two_names_may_be_one_value() -> None:
    assert count(lambda m, x: x * x, "y = mul(x, z)") == 1
    assert count(lambda m, x: x * x, "y = mul(x, z)", "where { x != z }") == 0
    assert count(lambda m, x, z: x * z, "y = mul(x, z)", "where { x != z }") == 1


def test_commutative_ops_match_both_orders() -> None:
    assert count(lambda m, x: x.sigmoid() * x, "s = sigmoid(x)\ny = mul(x, s)") == 1
    assert count(lambda m, x: x.sigmoid() - x, "s = sigmoid(x)\ny = sub(x, s)") == 0
    assert count(lambda m, x: x - x.sigmoid(), "s = sigmoid(x)\ny = sub(x, s)") == 1


def test_a_factor_on_one_operand_ends_commutativity() -> None:
    match = "s = sigmoid(x)\ny = add(x, s, alpha = 2)"
    assert count(lambda m, x: torch.add(x, x.sigmoid(), alpha=2), match) == 1
    assert count(lambda m, x: torch.add(x.sigmoid(), x, alpha=2), match) == 0


def test_distinct_pattern_ops_match_distinct_nodes() -> None:
    assert count(lambda m, x: x.relu() + 1, "a = relu(x)\nb = relu(x)\ny = add(a, b)") == 0

    def twice(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a = x.relu()
        return a + a

    assert count(twice, "a = relu(x)\nb = relu(x)\ny = add(a, b)") == 0
    assert count(lambda m, x: x.relu() + x.relu(), "a = relu(x)\nb = relu(x)\ny = add(a, b)") == 1


# -- literals, attributes, shapes ------------------------------------------------------------------


def test_literal_operands() -> None:
    assert count(lambda m, x: x * 2, "y = mul(x, 2)") == 1
    assert count(lambda m, x: 2.0 * x, "y = mul(x, 2)") == 1
    assert count(lambda m, x: x * 3, "y = mul(x, 2)") == 0
    assert count(lambda m, x, z: x * z, "y = mul(x, 2)") == 0
    assert count(lambda m, x: x * -1, "y = mul(x, -1)") == 1


def test_literal_attribute_and_bound_attribute() -> None:
    conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    for constraint, expected in (
        ("stride = 2", 1),
        ("stride = 1", 0),
        ("stride = (2, 2)", 1),
        ("groups = 1", 1),
    ):
        assert count(lambda m, x: m.c(x), f"y = conv2d(x, {constraint})", c=conv) == expected
    (site,) = sites(
        Fn(lambda m, x: m.c(x), c=conv), X, pattern("y = conv2d(x, stride = s, padding = p)")
    )
    assert site.scope.names["s"] == (2, 2)
    assert site.scope.names["p"] == (1, 1)


def test_a_pair_is_equal_to_a_number_only_if_both_are() -> None:
    conv = nn.Conv2d(8, 8, 3, stride=(1, 2))
    assert count(lambda m, x: m.c(x), "y = conv2d(x, stride = 1)", c=conv) == 0
    assert count(lambda m, x: m.c(x), "y = conv2d(x, stride = s)", "where { s == 1 }", c=conv) == 0
    assert count(lambda m, x: m.c(x), "y = conv2d(x, stride = s)", "where { s != 1 }", c=conv) == 1
    assert (
        count(lambda m, x: m.c(x), "y = conv2d(x, stride = s)", "where { s != (1, 2) }", c=conv)
        == 0
    )


def test_one_attribute_name_twice_must_agree() -> None:
    parts = {"a": nn.Conv2d(8, 8, 1, stride=2), "b": nn.Conv2d(8, 8, 1)}
    match = "h = conv2d(x, stride = s)\ny = conv2d(h, stride = s)"
    assert count(lambda m, x: m.b(m.a(x)), match, **parts) == 0
    assert count(lambda m, x: m.b(m.b2(x)), match, b2=nn.Conv2d(8, 8, 1), **parts) == 1


def test_attributes_may_be_dimensions() -> None:
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    match = "y = conv2d(x, groups = I) as c\nx : f[N, I, H, W]"
    assert count(lambda m, x: m.c(x), match, c=depthwise) == 1
    assert count(lambda m, x: m.c(x), match, c=nn.Conv2d(8, 8, 3)) == 0


def test_shapes() -> None:
    assert count(lambda m, x: x.relu(), "y = relu(x)\nx : f[N, C, H, H]") == 1
    assert count(lambda m, x: x.relu(), "y = relu(x)\nx : f[N, N, H, W]") == 0
    assert count(lambda m, x: x.relu(), "y = relu(x)\nx : f[N, C]") == 0
    assert count(lambda m, x: x.relu(), "y = relu(x)\nx : f[2, 8, _, 1..6]") == 1
    assert count(lambda m, x: x.relu(), "y = relu(x)\nx : i[...]") == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("...", 1),
        ("N, ...", 1),
        ("..., 6", 1),
        ("..., 8", 0),
        ("2, ..., 6, 6", 1),
        ("2, 8, ..., 6, 6", 1),
        ("2, 8, 6, ..., 6, 6", 0),
    ],
)
def test_rest_of_a_shape(shape: str, expected: int) -> None:
    assert count(lambda m, x: x.relu(), f"y = relu(x)\nx : t[{shape}]") == expected


def test_dimensions_unify_across_ops() -> None:
    match = "h = linear(x) as a\ny = linear(h) as b\na.weight : [M, I]\nb.weight : [I, M]"
    parts = {"a": nn.Linear(6, 4), "b": nn.Linear(4, 6), "c": nn.Linear(4, 5)}
    assert count(lambda m, x: m.b(m.a(x)), match, **parts) == 1
    assert count(lambda m, x: m.c(m.a(x)), match, **parts) == 0


def test_a_size_may_be_an_expression_of_a_name_that_follows() -> None:
    match = "y = conv2d(x) as c\nx : f[N, 2 * C, H, W]\nc.weight : [C, I, K, K]"
    assert count(lambda m, x: m.c(x), match, c=nn.Conv2d(8, 4, 1)) == 1
    assert count(lambda m, x: m.c(x), match, c=nn.Conv2d(8, 5, 1)) == 0
    (miss,) = misses(Fn(lambda m, x: x.relu()), X, pattern("y = relu(x)\nx : f[N, 2 * Q, H, W]"))
    assert "`2 * Q` is not known" in miss.text()


# -- readers outside -------------------------------------------------------------------------------


def forked(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = x.relu()
    return h.tanh() + h


def test_inner_values_have_one_reader() -> None:
    match = "h = relu(x)\ny = tanh(h)"
    (miss,) = misses(Fn(forked), X, pattern(match))
    assert miss.text() == "`h` is also read by add"
    assert miss.span is not None
    assert miss.span.text == "h = relu(x)"
    assert count(forked, "shared h = relu(x)\ny = tanh(h)") == 1


def test_a_value_that_the_model_returns_is_not_consumed() -> None:
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
