"""What generated models plant: each kind of model is reached, and finds a bug that others miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes import channels
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply import commit, engine
from lissom.rewrite.apply.engine import NoMatch
from lissom.rewrite.graph.places import lies_at
from lissom.rewrite.match import shapes as shape_match
from lissom.rewrite.match import site
from lissom.rewrite.match.match import Search
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.choices.source import Replayed, Rolled, Unsuitable
from lissom.rewrite.proving.models import filling, generate, settings, sizes
from lissom.rewrite.proving.models.grown import Grown
from lissom.rewrite.proving.models.places import inside, outside
from lissom.rewrite.proving.near_miss import NearResult, examine_near, near_misses
from lissom.rewrite.proving.prove import Explored, explore, prove
from lissom.rewrite.proving.stages import algebra
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import BAD, REFUSED, VACUOUS, model, trial
from lissom.rewrite.rules import binding
from lissom.rewrite.rules.rule import compile_rule

from .support import library

SEEDS = 200
MODELS = 50
Patch = pytest.MonkeyPatch


def subject_of(text: str, **functions: Callable[..., Any]) -> Subject:
    (rule,) = parse(text).all(t.Rule)
    return Subject(rule, vocabulary(), {**FUNCTIONS, **functions})


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary.library()


def shipped(name: str, old: str = "", new: str = "") -> Subject:
    """A library rule, with a piece of its text exchanged."""
    rules = [r for file in ("tidy", "fold", "merge") for r in parse(library(file)).all(t.Rule)]
    text = next(rule for rule in rules if rule.name.text == name).span.text
    assert old in text
    return subject_of(text.replace(old, new))


def grown_from(subject: Subject, count: int = SEEDS) -> Iterator[Grown]:
    """The models of so many seeds; draws that lead nowhere are left out."""
    for seed in range(count):
        try:
            yield model(Rolled(seed), subject)
        except Unsuitable:
            continue


def tensors(grown: Grown) -> list[Tensor]:
    return [*grown.inputs, *grown.module.parameters(), *grown.module.buffers()]


def found(explored: Explored) -> str:
    return "" if explored.failure is None else explored.failure.outcome.kind


def near(subject: Subject, name: str) -> NearResult:
    """What becomes of the near-miss whose name starts so."""
    misses = near_misses(compile_rule(subject.source, {}), subject)
    wanted = next(item for item in misses if item.name.startswith(name))
    return examine_near(wanted, subject, [])


NEUTRAL = "exact rule neutral { match { h = neg(x)\n y = neg(h) }\n rewrite { y = x } }"

# -- places ----------------------------------------------------------------------------------------

PLACES = """
exact rule places {
  match {
    h = linear(x) as a
    b = relu(h)
    y = relu(b)
    in a : "encoder.*.fc"
    in y : "encoder.?.[ab]ct"
  }
  rewrite {
    z = linear(x, weight = a.weight, bias = a.bias) from a
    y = relu(z)
  }
}
"""


def test_a_rule_for_some_places_fires_there_and_nowhere_else() -> None:
    chosen = subject_of(PLACES)
    explored = explore(chosen, 20)
    assert found(explored) == ""
    assert explored.fired >= 20
    for clause in ('in a : "encoder.*.fc"', 'in y : "encoder.?.[ab]ct"'):
        result = near(chosen, f"not {clause}")
        assert set(result.conditions) == {clause}
        assert result.wrong == []


def test_ops_stand_where_the_clauses_say() -> None:
    for grown in grown_from(subject_of(PLACES), 40):
        for planted in grown.planted:
            paths = [planted.nodes[index].meta["site"] for index in (0, 2)]
            assert lies_at(paths[0], "encoder.*.fc")
            assert lies_at(paths[1], "encoder.?.[ab]ct")


def test_an_engine_blind_to_places_is_found(monkeypatch: Patch) -> None:
    monkeypatch.setattr(site, "_place", lambda site: None)
    assert near(subject_of(PLACES), 'not in a : "encoder').wrong


def test_a_value_may_be_asked_for_in_a_place() -> None:
    text = NEUTRAL.replace("y = neg(h)", 'y = neg(h)\n in x : "body"')
    assert explore(subject_of(text), 20).fired >= 20
    assert near(subject_of(text), "not in x").silent > 0


@pytest.mark.parametrize("glob", ["a", "a.*", "a.*.c", "*", "?.[xy]", "[!q]*.b", "*a*b"])
def test_paths_inside_and_outside_of_a_glob(glob: str) -> None:
    assert lies_at(inside([glob], "part1"), glob)
    if glob != "*":
        assert all(not lies_at(outside(Rolled(n), glob, [], "part1"), glob) for n in range(9))
    else:
        with pytest.raises(Unsuitable):
            outside(Rolled(0), glob, [], "part1")


# -- unless ----------------------------------------------------------------------------------------

UNLESS = {
    "before": "x = flatten(w, start_dim = 1)\n x : f[N, C]",
    "behind": "z = neg(y)",
    "beside": "z = neg(x)\n w = abs(z)",
    "in a place": 'z = neg(x) as n\n in n : "body.*"',
}


def unless(kind: str) -> Subject:
    text = NEUTRAL.replace("rewrite", f"unless {{ {UNLESS[kind]} }}\n rewrite")
    return subject_of(text)


@pytest.mark.parametrize("kind", UNLESS)
def test_what_must_not_be_there_is_planted_on_purpose(kind: str, monkeypatch: Patch) -> None:
    assert found(explore(unless(kind), 20)) == ""
    result = near(unless(kind), "unless")
    assert result.silent > 0
    assert all(condition.startswith("unless {") for condition in result.conditions)
    monkeypatch.setattr(site, "_unless", lambda state, site: None)
    assert near(unless(kind), "unless").wrong


def test_the_library_has_such_a_rule() -> None:
    result = near(shipped("merge_reshapes"), "unless")
    assert result.silent > 0
    assert result.wrong == []


def test_a_rule_that_is_always_kept_from_firing_is_not_verified(monkeypatch: Patch) -> None:
    always = NoMatch(0, 0, lambda: "never", None, None)
    monkeypatch.setattr(site, "_unless", lambda state, site: always)
    explored = explore(unless("behind"), 10)
    assert explored.models >= 10
    assert explored.fired == 0


# -- whole numbers and truth values ----------------------------------------------------------------


def only_floats(patch: Patch) -> None:
    patch.setattr(filling, "kind_of_number", lambda source: "f")


def test_operands_of_every_type_are_drawn() -> None:
    dtypes = [grown.inputs[0].dtype for grown in grown_from(subject_of(NEUTRAL)) if grown.inputs]
    assert sum(not dtype.is_floating_point for dtype in dtypes) >= 10
    assert {torch.int64, torch.int32, torch.uint8} <= set(dtypes)
    both = subject_of("exact rule a { match { y = add(x, z) }\n rewrite { y = add(z, x) } }")
    assert any(value.dtype == torch.bool for g in grown_from(both) for value in tensors(g))


INTEGER_BUGS = {
    "a quotient is floating": "y = div(x, 1, rounding_mode = none) }\n rewrite { y = x",
    "one as a float": "y = mul(x, 1.0) }\n rewrite { y = x",
    "a sum of truth values": "y = add(x, x, alpha = 1) }\n rewrite { y = mul(x, 2)",
}


@pytest.mark.parametrize("bug", INTEGER_BUGS)
def test_a_rule_that_is_wrong_for_other_types(bug: str, monkeypatch: Patch) -> None:
    wrong = subject_of(f"exact rule wrong {{ match {{ {INTEGER_BUGS[bug]} }} }}")
    assert found(explore(wrong, MODELS)) in BAD
    only_floats(monkeypatch)
    assert found(explore(wrong, MODELS)) == ""


def test_an_engine_blind_to_types_is_found(monkeypatch: Patch) -> None:
    chosen = shipped("drop_times_one")
    assert near(chosen, "not x : f").wrong == []
    monkeypatch.setitem(shape_match._CLASSES, "f", lambda dtype: True)
    assert near(chosen, "not x : f").wrong


def test_constants_of_whole_numbers_are_computed_with_in_double(monkeypatch: Patch) -> None:
    """1 / k of whole numbers is rounded to float32, and k + none is no floating bias."""

    def as_it_is(constant: Any, channels_: int, axis: int, rank: int) -> Any:
        given = channels.per_channel(constant, channels_, axis, rank)
        kept = isinstance(constant, Tensor) and given is not None
        return given.to(constant.dtype) if kept else given

    for name in ("fold_divide_linear", "fold_shift_linear"):
        assert found(explore(shipped(name), MODELS)) == ""
        wrong = subject_of(shipped(name).source.span.text, per_channel=as_it_is)
        assert found(explore(wrong, MODELS)) in BAD


def test_numbers_of_a_pattern_are_written_in_several_ways() -> None:
    """`x - 0.0` is `x - 0`; `x - -0.0` is not: it turns -0 into 0."""
    chosen = shipped("drop_minus_zero")
    written = [planted.nodes[0].args[1] for g in grown_from(chosen) for planted in g.planted]
    assert {type(number) for number in written} >= {int, float}
    assert explore(chosen, MODELS).silent == {}


def test_a_matcher_blind_to_the_sign_of_zero_is_found(monkeypatch: Patch) -> None:
    chosen = shipped("drop_minus_zero")
    assert near(chosen, "not 0").wrong == []
    monkeypatch.setattr(binding, "_is_number", lambda found, wanted: found == wanted)
    assert near(chosen, "not 0").wrong


def test_whole_numbers_beside_residues_are_residues() -> None:
    """Algebra called this wrong where -5 was joined to numbers modulo p."""
    text = """
    exact rule joined {
      match {
        h = cat(xs..., dim = d)
        b = neg(h)
        y = neg(b)
      }
      rewrite { y = cat(xs, dim = d) }
    }
    """
    chosen = subject_of(text)
    results = [r for tape in explore(chosen, 30).tapes for r in algebra(chosen, tape)]
    assert {result.verdict for result in results} == {"proved"}


# -- further inputs --------------------------------------------------------------------------------

ATTENTION = """
exact rule attention {
  match {
    shared h = scaled_dot_product_attention(q, k, v)
    b = relu(h)
    y = relu(b)
  }
  rewrite { y = relu(h) }
}
"""


def blind_to_further_inputs(patch: Patch) -> None:
    def operands(self: Search, op: Any, call: Any, given: tuple[Any, ...], bound: Any) -> bool:
        return all(binding.operand(bound, w, v) for w, v in zip(op.operands, given, strict=False))

    patch.setattr(Search, "_operands", operands)


def test_an_input_that_the_pattern_does_not_name(monkeypatch: Patch) -> None:
    chosen = subject_of(ATTENTION)
    result = near(chosen, "a further input")
    assert result.silent > 0
    assert result.wrong == []
    blind_to_further_inputs(monkeypatch)
    assert near(chosen, "a further input").wrong


def test_an_optional_input_that_the_pattern_names() -> None:
    chosen = subject_of(ATTENTION.replace("(q, k, v)", "(q, k, v, m)"))
    explored = explore(chosen, 20)
    assert found(explored) == ""
    assert explored.fired >= 20
    masks = {
        planted.values["m"].meta["val"].dtype for g in grown_from(chosen) for planted in g.planted
    }
    assert torch.bool in masks
    assert torch.float32 in masks


def test_costs_of_values_without_extent_are_nothing() -> None:
    shapes = {"query": (2, 3), "key": (4, 3), "value": (4, 0)}
    op = vocabulary()["scaled_dot_product_attention"]
    assert op.macs(op.bind(shapes, op.defaults)) == 0


# -- settings --------------------------------------------------------------------------------------


def blind_to_settings(patch: Patch) -> None:
    patch.setattr(shape_match, "_compare", lambda scope, keyword, call: None)


SETTINGS = {
    "not rounding_mode = none": shipped("fold_divide"),
    'not approximate = "none"': subject_of(
        NEUTRAL.replace("y = neg(h)", 'b = neg(h)\n y = gelu(b, approximate = "none")').replace(
            "y = x", "y = gelu(x)"
        )
    ),
    'not approximate = "tanh"': subject_of(
        NEUTRAL.replace("y = neg(h)", 'b = neg(h)\n y = gelu(b, approximate = "tanh")').replace(
            "y = x", 'y = gelu(x, approximate = "tanh")'
        )
    ),
    'not mode = "constant"': subject_of(
        NEUTRAL.replace(
            "y = neg(h)", 'b = neg(h)\n y = pad(b, mode = "constant", pad = p, value = 0.0)'
        ).replace("y = x", "y = pad(x, pad = p)")
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_are_words_or_none_are_violated(name: str, monkeypatch: Patch) -> None:
    result = near(SETTINGS[name], name)
    assert result.silent > 0
    assert result.wrong == []
    blind_to_settings(monkeypatch)
    assert near(SETTINGS[name], name).wrong


def test_a_setting_of_type_any_that_a_rule_leaves_open() -> None:
    """The rule once dropped a division by one that rounds down."""
    wrong = shipped("drop_divide_by_one", ", rounding_mode = none", "")
    assert found(explore(wrong, MODELS)) in BAD
    assert found(explore(shipped("drop_divide_by_one"), MODELS)) == ""


# -- float16 ---------------------------------------------------------------------------------------


def only_half(patch: Patch) -> None:
    patch.setattr(generate, "DTYPES", (torch.float16,))


def test_models_in_float16_are_drawn() -> None:
    chosen = shipped("fold_bn_linear")
    dtypes = [weight.dtype for g in grown_from(chosen) for weight in g.module.parameters()]
    assert {torch.float16, torch.bfloat16, torch.float32, torch.float64} <= set(dtypes)


@pytest.mark.parametrize("name", ["fold_bn", "merge_linear", "absorb_bn_linear"])
def test_float16_raises_no_alarm(name: str, monkeypatch: Patch) -> None:
    only_half(monkeypatch)
    explored = explore(shipped(name), 20)
    assert found(explored) == ""
    assert explored.fired >= 20


def test_an_engine_that_is_wrong_in_float16(monkeypatch: Patch) -> None:
    rounded = commit._rounded

    def coarse(state: Any, planned: Any, *rest: Any) -> Any:
        weight = rounded(state, planned, *rest)
        return weight.trunc() if planned.dtype == torch.float16 and weight is not None else weight

    monkeypatch.setattr(commit, "_rounded", coarse)
    monkeypatch.setattr(engine, "check_exact", lambda *given: ())
    assert found(explore(shipped("fold_bn_linear"), MODELS)) == "WRONG"
    monkeypatch.setattr(generate, "DTYPES", (torch.float32,))
    assert found(explore(shipped("fold_bn_linear"), MODELS)) == ""


# -- nothing at all --------------------------------------------------------------------------------

FLAT = """
exact rule flat {
  match {
    y = flatten(x, start_dim = 1, end_dim = -1)
    x : t[N, C, L]
  }
  rewrite { y = reshape(x, shape = (runtime_size(x, 0), -1)) }
}
"""


def never_empty(patch: Patch) -> None:
    patch.setattr(sizes, "EMPTY_AXES", (None,))


def test_batches_of_no_sample_are_drawn_now_and_then() -> None:
    empty = [g.is_empty for g in grown_from(subject_of(NEUTRAL), 400)]
    assert 3 <= sum(empty) <= 40


def test_a_rule_that_is_wrong_for_no_samples(monkeypatch: Patch) -> None:
    assert found(explore(subject_of(FLAT), 150)) in BAD
    never_empty(monkeypatch)
    assert found(explore(subject_of(FLAT), 150)) == ""


def test_empty_models_are_no_evidence(monkeypatch: Patch) -> None:
    monkeypatch.setattr(sizes.Extents, "draw", lambda self, axis=0: 0 if axis == 0 else 3)
    chosen = subject_of(NEUTRAL)
    outcomes = [o for g in grown_from(chosen, 20) if g.inputs for o in trial(chosen, g)]
    empty = (VACUOUS, "every output is empty")
    assert {(o.kind, o.condition) for o in outcomes} == {empty, (REFUSED, "V106")}
    explored = explore(chosen, 20)
    assert explored.models >= 20
    assert (explored.fired, explored.tapes) == (0, [])


# -- memory ----------------------------------------------------------------------------------------


def in_memory_order(w: Tensor) -> Tensor:
    """What a kernel reads that does not look at strides."""
    steps = torch.empty(w.shape).stride()
    return torch.as_strided(w, w.shape, steps)


def test_inputs_and_weights_lie_in_memory_in_several_ways() -> None:
    chosen = list(grown_from(shipped("merge_linear"), 100))
    strided = [v for g in chosen for v in tensors(g) if not v.is_contiguous()]
    assert len(strided) >= 10
    assert any(isinstance(value, nn.Parameter) for value in strided)
    images = [v for g in grown_from(shipped("fold_bn"), 100) for v in tensors(g) if v.dim() == 4]
    last = [v for v in images if v.is_contiguous(memory_format=torch.channels_last)]
    assert any(not value.is_contiguous() for value in last)


def test_a_function_that_ignores_strides(monkeypatch: Patch) -> None:
    text = shipped("merge_linear").source.span.text.replace(
        "b.weight @ a.weight", "b.weight @ ordered(a.weight)"
    )
    wrong = subject_of(text, ordered=in_memory_order)
    assert found(explore(wrong, 2 * MODELS)) in BAD
    monkeypatch.setattr(filling, "laid_out", lambda source, value: value)
    assert found(explore(wrong, 2 * MODELS)) == ""


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_another_layout_holds_the_same_numbers(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    for kind in range(3):
        assert settings.laid_out(Replayed([99, kind]), value).equal(value)


# -- one value under two names ---------------------------------------------------------------------

DIFFERENCE = """
exact rule difference {
  match {
    h = neg(z)
    y = add(x, h, alpha = 1)
    x : f[...]
    z : f[...]
  }
  rewrite { y = sub(x, z) }
}
"""


def test_two_names_are_now_and_then_one_value() -> None:
    values = [p.values for g in grown_from(subject_of(DIFFERENCE)) for p in g.planted]
    assert sum(v["x"] is v["z"] for v in values) >= 2
    assert sum(v["x"] is v["h"] for v in values) >= 2


def test_a_matcher_that_wants_different_values(monkeypatch: Patch) -> None:
    unify = binding.unify_value

    def distinct(bound: Any, name: str, value: Any) -> bool:
        others = [known for other, known in bound.values.items() if other != name]
        same = isinstance(value, fx.Node) and any(known is value for known in others)
        return not same and unify(bound, name, value)

    assert found(explore(subject_of(DIFFERENCE), 2 * MODELS)) == ""
    monkeypatch.setattr(binding, "unify_value", distinct)
    assert found(explore(subject_of(DIFFERENCE), 2 * MODELS)) == "MISSING"


def test_an_operand_that_the_rewrite_removes_is_no_error_of_the_rule() -> None:
    """In `h + h` the rule above would read `h`, which it takes out."""
    explored = explore(subject_of(DIFFERENCE), 2 * MODELS)
    assert explored.refused["N005"] > 0
    assert found(explored) == ""


# -- found on the way ------------------------------------------------------------------------------


def test_a_result_of_another_shape_is_told_and_no_crash() -> None:
    """Magnitudes of both sides were compared before their shapes were."""
    (text,) = FLAT.split("rewrite")[:1]
    wrong = subject_of(f"{text} rewrite {{ y = reshape(x, shape = (1, -1)) }} }}")
    failure = explore(wrong, MODELS).failure
    assert failure is not None
    assert failure.outcome.kind in ("UNSOUND", "WRONG")  # at one sample it is right, there alone


def test_operands_in_double_precision_beside_others_keep_it() -> None:
    text = NEUTRAL.replace("h = neg(x)", "b = where(c, x, z)\n h = neg(b)")
    explored = explore(subject_of(text.replace("y = x", "y = where(c, x, z)")), 2 * MODELS)
    assert found(explored) == ""


def test_layers_without_weights_are_scaled() -> None:
    nothing = torch.ones(3, 0, 2)
    assert channels.scale_inputs(nothing, torch.ones(0)).shape == (3, 0, 2)
    assert channels.response(nothing, torch.ones(0)).tolist() == [0, 0, 0]


def test_a_clause_that_no_model_violates_makes_a_rule_weak(monkeypatch: Patch) -> None:
    text = """
exact rule drop_neg_pair {
  match {
    h = neg(x)
    y = neg(h)
    in y : "encoder.*"
  }
  unless { x = relu(z) }
  rewrite { y = x }
}
"""
    chosen = subject_of(text)
    assert not [reason for reason in prove(chosen, 60).weak if "violates" in reason]
    monkeypatch.setattr("lissom.rewrite.proving.near_miss.ATTEMPTS", 0)
    assert 'no model violates `in y : "encoder.*"`' in prove(chosen, 60).weak
