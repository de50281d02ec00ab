"""What patterns match, what they do not, and what a miss says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .support import Fn, Fn2, misses, sites

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


def test_an_operand_that_is_left_out_is_none_of_the_rest() -> None:
    model = Fn(lambda m, x: F.scaled_dot_product_attention(x, x, x + 1))
    (site,) = sites(model, X, pattern("y = scaled_dot_product_attention(q, more...)"))
    assert len(site.bindings.values["more"]) == 2, "there is no mask"


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
