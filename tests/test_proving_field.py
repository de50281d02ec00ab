"""The finite-field check: correct algebra is proved, planted bugs never are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lissom.grammar.diagnostics import LissomError
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply.engine import candidates, find
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.match.site import Site, examine
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.algebra.field import (
    PROVED,
    UNDECIDED,
    WHOLE,
    WRONG,
    FieldResult,
    check_field,
)
from lissom.rewrite.proving.algebra.field_ops import EXACT
from lissom.rewrite.proving.algebra.field_tensor import Field, World
from lissom.rewrite.proving.algebra.residues import PRIME, Track, Unexpressible, survival
from lissom.rewrite.proving.choices.source import Rolled, Unsuitable
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import bound, model, state_of

from .support import Fn, digests, library, the_rule
from .support import state_of as driven_state
from .test_verify import (
    CONV,
    FOLD_FUNCTIONS,
    FOLD_MUTANTS,
    LINEAR,
    MUTANTS,
    conv_model,
    conv_norm,
    fold,
    linear_model,
    written,
)
from .test_verify import FUNCTIONS as LOW_RANK_FUNCTIONS

ORDERS = {
    "drop_repeated_relu", "drop_relu_of_softplus", "drop_repeated_abs", "merge_clamps",
    "merge_relu_clamp",
    "merge_clamp_relu", "sink_bn", "sink_bn_1d",
}  # fmt: skip
"""Rules about signs and orders, which a field does not have."""


def at_site(model: nn.Module, x: Tensor, text: str, **args: Any) -> FieldResult:
    functions = {**FOLD_FUNCTIONS, **LOW_RANK_FUNCTIONS}
    state = driven_state(capture(model, (x,)).module, (x,), functions)
    rule = the_rule(text, **args)
    (found,) = (
        site
        for site in (find(state, rule, node) for node in candidates(state, rule))
        if isinstance(site, Site)
    )
    return check_field(state, found)


# -- batch norm folds and low rank -----------------------------------------------------------------

X = torch.ones(2, 6, 8, 8)
ROUNDING = {"weights rounded to float16", "bias rounded to bfloat16"}
OPAQUE = ROUNDING | {
    "epsilon dropped", "epsilon ten times too small", "epsilon outside the root",
    "gamma made positive",
}  # fmt: skip
"""Mutants with a root of something else than the variance, a sign, or a rounding."""


def test_the_right_fold_is_proved() -> None:
    found = at_site(conv_norm(0), X, fold({}))
    assert found.verdict == PROVED
    assert found.trials == 4
    assert 0 < found.error < 1e-15
    assert found.degree > 4
    assert found.shapes["x"] == (2, 6, 8, 8)
    assert found.shapes["0.weight"] == (6, 6, 3, 3)


@pytest.mark.parametrize("name", FOLD_MUTANTS)
def test_no_wrong_fold_is_proved(name: str) -> None:
    found = at_site(conv_norm(0), X, fold(FOLD_MUTANTS[name]))
    assert found.verdict == (UNDECIDED if name in OPAQUE else WRONG)
    assert "differs in 768 of 768 elements" in found.reason


@pytest.mark.parametrize(("text", "made"), [(LINEAR, linear_model), (CONV, conv_model)])
def test_low_rank_is_proved_for_any_factors(text: str, made: Callable[..., Any]) -> None:
    network, x = made(16, 20, torch.float32)
    right = at_site(network, x, written(text, {}), R=4)
    assert right.verdict == PROVED
    assert [name.partition("(")[0] for name in right.assumed] == ["svd"]
    for name, changed in MUTANTS.items():
        assert at_site(network, x, written(text, changed), R=4).verdict == UNDECIDED, name


# -- the library -----------------------------------------------------------------------------------


@cache
def subjects(file: str) -> list[Subject]:
    rules = parse(library(file), f"{file}.lissom").all(t.Rule)
    return [Subject(rule, Vocabulary.library(), FUNCTIONS) for rule in rules]


def double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def each(subject: Subject, seeds: range) -> Iterator[FieldResult]:
    """The verdict on every planted instance that the engine can run in float64."""
    for seed in seeds:
        try:
            grown = model(Rolled(seed), subject)
            copy.deepcopy(grown.module).double()(*map(double, grown.inputs))
        except (Unsuitable, RuntimeError):
            continue
        state = state_of(subject, grown)
        for planted in grown.planted:
            found = bound(state, grown.rule, planted)
            site = found if isinstance(found, str) else examined(state, grown.rule, found)
            if isinstance(site, Site):
                yield check_field(state, site, seed=seed)


def examined(state: Any, rule: Any, found: Any) -> Any:
    try:
        return examine(state, rule, found)
    except LissomError:
        return None


@pytest.mark.parametrize("file", ["tidy", "fold", "absorb", "merge", "separable", "lowrank"])
def test_the_algebra_of_the_library_is_proved(file: str) -> None:
    for subject in subjects(file):
        name = subject.source.name.text
        found = [r for r in each(subject, range(12)) if r.reason != WHOLE]
        expected = UNDECIDED if name in ORDERS else PROVED
        assert {(r.verdict, r.reason) for r in found if r.verdict != expected} == set(), name


# -- the check itself ------------------------------------------------------------------------------


def said(function: Callable[..., Any], match: str, rewrite: str, **parts: Any) -> FieldResult:
    text = f"exact rule r {{ match {{\n{match}\n}}\nrewrite {{\n{rewrite}\n}} }}"
    return at_site(Fn(function, **parts), torch.ones(2, 4, 6), text)


@pytest.mark.parametrize(
    ("function", "match", "rewrite", "expected"),
    [
        (lambda m, x: x * 0.1 * 0.7, "h = mul(x, a)\ny = mul(h, b)", "y = mul(x, a * b)", PROVED),
        (lambda m, x: x * 0.1, "y = mul(x, 0.1)", "y = div(x, 10)", PROVED),
        (lambda m, x: x * 0.1, "y = mul(x, 0.1)", "y = div(x, 9)", WRONG),
        (lambda m, x: x / 3, "y = div(x, 3)", "y = mul(x, 1 / 3)", PROVED),
        (lambda m, x: x.sqrt() * x.sqrt(), "a = sqrt(x)\nb = sqrt(x)\ny = mul(a, b)",
         "y = x", PROVED),
        (lambda m, x: F.gelu(x).neg(), "h = gelu(x)\ny = neg(h)",
         "y = mul(gelu(x), -1)", PROVED),
        (lambda m, x: F.gelu(x), "y = gelu(x)", "y = relu(x)", UNDECIDED),
        (lambda m, x: F.relu6(x), "y = hardtanh(x, min_val = a, max_val = b)",
         "y = hardtanh(x, min_val = a, max_val = b)", PROVED),
        (lambda m, x: x.softmax(2), "y = softmax(x, dim = d)", "y = softmax(x, dim = d)", PROVED),
        (lambda m, x: x.softmax(2), "y = softmax(x, dim = d)",
         "y = softmax(x, dim = 1)", UNDECIDED),
        (lambda m, x: x.transpose(1, 2), "y = transpose(x)", "y = permute(x, (0, 2, 1))", PROVED),
        (lambda m, x: x.mean(2), "y = mean(x, dim = 2)\nx : f[N, C, L]",
         "y = div(sum(x, dim = 2), L)", PROVED),
        (lambda m, x: x.mean(2), "y = mean(x, dim = 2)\nx : f[N, C, L]",
         "y = div(sum(x, dim = 2), C)", WRONG),
        (lambda m, x: F.avg_pool1d(x, 3), "y = avg_pool1d(x, kernel_size = 3)",
         "y = avg_pool1d(x, kernel_size = 3)", PROVED),
        (lambda m, x: F.avg_pool1d(x, 3), "y = avg_pool1d(x, kernel_size = 3)",
         "y = mul(avg_pool1d(mul(x, 2), kernel_size = 3), 0.5)", PROVED),
    ],
)  # fmt: skip
def test_rules_on_values(
    function: Callable[..., Any], match: str, rewrite: str, expected: str
) -> None:
    found = said(function, match, rewrite)
    assert found.verdict == expected, found.reason


def test_a_difference_may_need_an_equation_that_the_site_meets() -> None:
    """Weights that are all one: residues are not, so nothing is said about the rule."""
    text = """exact rule r {{ match {{ y = linear(x) as l }}
      where {{ {guard} }}
      rewrite {{ y = linear(x, weight = ones(4, 6), bias = l.bias) from l }} }}"""
    network = Fn(lambda m, x: m.l(x), l=nn.Linear(6, 4))
    with torch.no_grad():
        network.l.weight.fill_(1)
    x = torch.ones(3, 6)
    for guard, expected in (("max(l.weight) == 1", UNDECIDED), ("max(l.weight) > 0", WRONG)):
        assert at_site(network, x, text.format(guard=guard)).verdict == expected


def test_nothing_is_changed() -> None:
    subject = next(s for s in subjects("lowrank") if s.source.name.text == "low_rank_conv")
    for seed in range(60):
        try:
            grown = model(Rolled(seed), subject)
        except Unsuitable:
            continue
        state = state_of(subject, grown)
        site = examined(state, grown.rule, bound(state, grown.rule, grown.planted[0]))
        if isinstance(site, Site):
            break
    before = digests(grown.module), str(grown.module.graph), dict(site.scope.names)
    read = dict(site.scope.read)
    assert check_field(state, site) == check_field(state, site)
    assert digests(grown.module) == before[0]
    assert str(grown.module.graph) == before[1]
    assert all(site.scope.names[name] is value for name, value in before[2].items())
    assert site.scope.names.keys() == before[2].keys()
    assert site.scope.read == read
    assert not state.known_specs


# -- arithmetic ------------------------------------------------------------------------------------


def whole(*shape: int) -> Tensor:
    return torch.randint(
        -9, 10, shape, generator=torch.Generator().manual_seed(sum(shape))
    ).double()


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w, b: F.conv2d(x, w, b, 2, 1, 2), [(2, 4, 7, 7), (6, 4, 3, 3), (6,)]),
        (lambda x, w: F.conv1d(x, w, None, groups=2), [(2, 4, 7), (6, 2, 3)]),
        (lambda x, w, b: F.conv_transpose2d(x, w, b, 2, output_padding=1, groups=2),
         [(2, 4, 5, 5), (4, 3, 3, 3), (6,)]),
        (F.linear, [(2, 3, 4), (5, 4), (5,)]),
        (F.linear, [(4,), (5, 4)]),
        (lambda a, b: torch.einsum("omk,mi->oik", a, b), [(3, 4, 2), (4, 5)]),
        (lambda x: 12 * F.avg_pool2d(x, 2, 2, 1, True, False), [(1, 2, 5, 5)]),
        (lambda x: 12 * F.adaptive_avg_pool2d(x, (2, 4)), [(1, 2, 5, 5)]),
        (lambda x: (1 - x) * 2.5 + x**3 - x / 4 + F.pad(x, (0, 1))[:, 1:], [(3, 3)]),
        (lambda x, y: torch.addmm(x, x, y, beta=2, alpha=3) + torch.add(x, y, alpha=-2),
         [(3, 3), (3, 3)]),
        (lambda x: torch.where(torch.eye(3) > 0, x, 0.5) + x.masked_fill(torch.eye(3) > 0, -1.0),
         [(3, 3)]),
        (lambda x: torch.stack([x.T, x.flip(0)]).cumsum(0).mean(), [(4, 4)]),
        (lambda x: F.unfold(x, 2).sum(1), [(1, 2, 4, 4)]),
    ],
)  # fmt: skip
def test_operations_agree_with_small_whole_numbers(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    world = World(0, EXACT)
    given = [whole(*shape) for shape in shapes]
    with torch.no_grad():
        expected, found = function(*given), function(*map(world.lift, given))
    assert isinstance(found, Field)
    assert torch.equal(found.residues, world.lift(expected).residues)


def test_what_has_no_meaning_is_refused() -> None:
    x = World(0, EXACT).variable((3,))
    refused: list[Callable[[], Any]] = [
        lambda: bool((x > 0).all()), lambda: float(x[0]), lambda: torch.equal(x, x),
        lambda: F.dropout(x), lambda: x.nonzero(), lambda: x.add_(1),
    ]  # fmt: skip
    for attempt in refused:
        with pytest.raises(Unexpressible):
            attempt()


@pytest.mark.parametrize("number", [math.exp(0.5), math.sqrt(2), 1 / 3, 1.0507009873554805])
def test_what_was_rounded_is_refused_not_taken_as_exact(number: float) -> None:
    """exp(0.5) exp(0.25) is exp(0.75), but not of the floats that stand for them."""
    world = World(0, EXACT)
    with pytest.raises(Unexpressible, match="rounded"):
        world.lift(torch.tensor(number, dtype=torch.float64))


@pytest.mark.parametrize("number", [0.1, 1e-5, 2.0**-30, 3.0, 1e20, 0.123456789, 1000.001])
def test_what_is_written_is_exact(number: float) -> None:
    World(0, EXACT).lift(torch.tensor(number, dtype=torch.float64))


def test_long_sums_are_refused_not_wrong() -> None:
    world = World(0, EXACT)
    size = 1 << 18
    largest = Field(torch.full((1, size), PRIME - 1.0).double(), world, Track())
    with pytest.raises(Unexpressible):
        largest @ largest.T


def test_the_bound_counts_degrees_and_opaque_arguments() -> None:
    variable = Track(2)
    ratio = variable.times(variable).plus(variable.inverse())
    assert (ratio.num, ratio.den) == (6, 2)
    assert (variable.inverse().summed(5).num, variable.inverse().summed(5).den) == (8, 10)
    hidden = ratio.hidden()
    assert (hidden.num, hidden.opaque, hidden.deep, hidden.free) == (1, 1, 8, True)
    assert survival(hidden, hidden) > survival(variable, variable) > 0
    assert survival(Track(PRIME), Track()) == 1.0
