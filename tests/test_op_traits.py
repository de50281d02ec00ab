"""What the traits of the library say of numbers is so, and an own op is judged by them too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from lissom.grammar.text.parse import parse
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.measure.rounding_model import magnitude, terms
from lissom.rewrite.ops.opspec import OpSpec
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.bits.exactness import _behind_the_point
from lissom.rewrite.proving.mutants.alter_steps import _same_on_numbers
from lissom.rewrite.proving.mutants.roles import roles
from tests.spelled_functions import FUNCTIONS
from tests.spelled_layers import LAYERS
from tests.traced import traced

LIBRARY = Vocabulary.library()


def cases_with(*traits: str) -> list[Any]:
    """The first spelling of each op with one of the traits, and its inputs."""
    cases = [case for case in (*LAYERS, *FUNCTIONS) if LIBRARY[case[0]].traits & {*traits}]
    return [pytest.param(*case[:2], case[2][0], id=case[0]) for case in cases]


def flat(value: Any) -> list[Tensor]:
    """The floating tensors in a value."""
    several = value if isinstance(value, (tuple, list)) else (value,)
    return [part for part in several if isinstance(part, Tensor) and part.is_floating_point()]


def is_dropping(root: fx.GraphModule, node: fx.Node) -> bool:
    call = GraphView(root).call(node)
    return call is not None and call.attrs.get("training", False) and "random" in call.op.traits


def signed(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same shapes, with numbers of either sign."""
    torch.manual_seed(1)
    return tuple(torch.randn_like(x) if x.is_floating_point() else x for x in inputs)


@pytest.mark.parametrize(("op", "inputs", "spelling"), cases_with("nonnegative"))
def test_nothing_is_below_zero(op: str, inputs: tuple[Any, ...], spelling: Any) -> None:
    root, _, _ = traced(spelling, inputs)
    found = flat(root(*signed(inputs)))
    assert found
    assert all(bool((value >= 0)[~value.isnan()].all()) for value in found)


def test_what_is_never_negative_says_so() -> None:
    """Of the functions of one number: found by trying."""
    numbers = torch.linspace(-9, 9, 2001)
    plain = [LIBRARY[n] for n in LIBRARY.names()]
    plain = [op for op in plain if "elementwise" in op.traits and len(op.inputs) == 1]
    plain = [op for op in plain if not op.attrs and not op.params and op.name != "bitwise_not"]
    assert len(plain) > 20
    for op in plain:
        found = op.run({op.inputs[0].name: numbers}, {}, {})
        above = found.is_floating_point() and bool((found[~found.isnan()] >= 0).all())
        assert ("nonnegative" in op.traits) == above, op.name


@pytest.mark.parametrize(("op", "inputs", "spelling"), cases_with("unrounded"))
def test_no_number_is_rounded(op: str, inputs: tuple[Any, ...], spelling: Any) -> None:
    root, node, found = traced(spelling, inputs)
    call = GraphView(root).call(node)
    assert call is not None
    if is_dropping(root, node):
        return
    written = [v for v in call.attrs.values() if isinstance(v, (int, float))]
    weights = [t.detach() for name in call.params if (t := call.tensor(name)) is not None]
    known = [x.abs().flatten() for x in (*flat(inputs), *weights)]
    numbers = torch.cat([torch.tensor([0.0, *map(abs, written)]), *known])
    for value in flat(found):
        whole = value == value.round()
        assert bool((whole | torch.isin(value.abs(), numbers)).all())


@pytest.mark.parametrize(("op", "inputs", "spelling"), cases_with("linear_in_x", "additive"))
def test_sums_go_through(op: str, inputs: tuple[Any, ...], spelling: Any) -> None:
    """f(x + y) + f(0) = f(x) + f(y), of the first input or, where the op adds, of all."""
    root, node, _ = traced(spelling, inputs)
    call = GraphView(root).call(node)
    assert call is not None
    if call.attrs.get("rounding_mode") is not None:
        return
    every = "additive" in call.op.traits
    root, given = (
        copy.deepcopy(root).double(),
        [x.double() if x.is_floating_point() else x for x in inputs],
    )
    other = [torch.randn_like(x) if every or not i else x for i, x in enumerate(given)]
    both = [
        a + b if every or not i else a for i, (a, b) in enumerate(zip(given, other, strict=True))
    ]
    none = [torch.zeros_like(x) if every or not i else x for i, x in enumerate(given)]
    torch.testing.assert_close(root(*both) + root(*none), root(*given) + root(*other))


# -- own ops ---------------------------------------------------------------------------------------

TEXT = """
op plus(x: t[...], y: t[...]) -> t[...] { trait elementwise, additive
  meaning own.plus(x, y) }
op over(x: t[...], y: t[...]) -> t[...] { trait elementwise, linear_in_x
  meaning own.over(x, y) }
op product(x: f[A, K], y: f[K, B]) -> f[A, B] { trait linear_in_x
  meaning own.product(x, y) }
op upper(x: t[...]) -> t[...] { trait elementwise, unrounded, nonnegative
  meaning own.upper(x) }
op moved(x: f[N, C]) -> f[N, C] { param running_mean?: [C]
  param running_var?: [C]
  param weight?: [C]
  param bias?: [C]
  attr eps: float = 0.00001
  mixes none
  meaning torch.nn.functional.batch_norm(input = x, running_mean, running_var, weight, bias, eps) }
exact rule floored {
  match { y = upper(x) }
  rewrite { y = upper(upper(x)) }
}
"""
FILE = parse(TEXT, "own.lissom")
OWN = Vocabulary.from_files(
    [FILE],
    {
        "own.plus": lambda x, y: x - y,
        "own.over": lambda x, y: x / (2 * y),
        "own.product": lambda x, y: x @ y,
        "own.upper": lambda x: x.clamp(min=0),
    },
)
LIKE = {"plus": "sub", "over": "div", "product": "matmul", "moved": "batch_norm"}


def scale(op: OpSpec, inputs: tuple[Any, ...], params: dict[str, Any]) -> Any:
    given = dict(zip((spec.name for spec in op.inputs), inputs, strict=True))
    attrs = op.fill({}, (*given, *params))

    def run(values: Any, weights: Any) -> Any:
        return op.run(values, weights or params, attrs)

    return magnitude(op, run, given, params, run(given, params)), terms(op, given, params)


@pytest.mark.parametrize("name", LIKE)
def test_rounding_of_an_own_op_is_judged_as_sharply(name: str) -> None:
    x, y = torch.tensor([[3.0, 1e-6], [2.0, 5.0]]).double(), torch.tensor([[3.0, 1e3], [4.0, 1.0]])
    names = ("running_mean", "running_var", "weight", "bias") if name == "moved" else ()
    params = {name: torch.tensor([3.0, 2.0]).double() for name in names}
    inputs = (x,) if params else (x, y.double())
    own, known = (scale(op, inputs, params) for op in (OWN[name], LIBRARY[LIKE[name]]))
    assert own[1] == known[1] == (2 if name == "product" else 1)
    factor = 2 if name == "over" else 1
    torch.testing.assert_close(own[0] * factor, known[0])


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_attention_is_judged_by_the_size_of_its_logits(size: float) -> None:
    """One of two keys wins by a hair: what rounds the logits moves the result as much again."""
    op = LIBRARY["scaled_dot_product_attention"]
    query, value = torch.tensor([[size, size]]).double(), torch.tensor([[1.0], [0.0]]).double()
    key = torch.tensor([[size, -size], [-size, size]]).double()
    moved = query + torch.tensor([[1e-13 * size, 0.0]]).double()
    scales = query.abs(), key.abs(), value, None
    allowed, _ = scale(op, scales, {})

    def result(q: Tensor) -> Tensor:
        return op.run(
            {"query": q, "key": key, "value": value, "attn_mask": None}, {}, op.fill({}, ())
        )

    assert (result(query) - result(moved)).abs() < 1e-13 * allowed
    assert allowed < 5 * (1 + size**2)


def test_bits_of_an_own_op_are_counted() -> None:
    """0.5 has one bit behind the point, 0.25 two."""
    x, y = torch.tensor([0.5]).double(), torch.tensor([0.25]).double()
    assert _behind_the_point(OWN["plus"], [x, y], {}, {}) == 2
    assert _behind_the_point(OWN["over"], [x, y], {}, {}) == 1
    assert _behind_the_point(OWN["over"], [x, 3 * y], {}, {}) > 50
    assert _behind_the_point(OWN["upper"], [x], {}, {}) == 0


def test_a_rounding_division_is_no_product() -> None:
    x, y = torch.tensor([7.0]).double(), torch.tensor([2.0]).double()
    floor = {"rounding_mode": "floor"}
    assert _behind_the_point(LIBRARY["div"], [x, y], {}, floor) is None
    assert _behind_the_point(LIBRARY["div"], [x, y], {}, {"rounding_mode": None}) == 1


def test_a_sign_that_an_own_op_never_gives_is_no_mistake() -> None:
    (rule,) = FILE.all(type(FILE.statements[-1]))
    assert roles(rule, OWN).signless


def test_an_op_that_computes_the_same_is_no_mistake() -> None:
    assert _same_on_numbers(LIBRARY["sum"], LIBRARY["nansum"])
    assert _same_on_numbers(LIBRARY["contiguous"], LIBRARY["clone"])
    assert _same_on_numbers(LIBRARY["relu"], OWN["upper"])
    assert not _same_on_numbers(LIBRARY["relu"], LIBRARY["softplus"])
    assert not _same_on_numbers(LIBRARY["max_pool1d"], LIBRARY["avg_pool1d"])
