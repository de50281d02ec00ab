"""The mutation score: which mistakes are derived from a rule's tree, and who notices them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import pytest
import torch

from lissom.grammar.diagnostics import LissomError
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.mutants.mutants import LEAST, Mutant, mutants
from lissom.rewrite.proving.mutants.mutate import (
    CHECKER,
    ENGINE,
    MODEL,
    Fate,
    Score,
    Specimen,
    kill,
    score,
    specimens,
)
from lissom.rewrite.proving.mutants.spoiling import MUTATION_FUNCTIONS
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import model

from .support import library

FILES = ("tidy", "fold", "absorb", "merge", "separable", "lowrank")
Item = TypeVar("Item")


class Seeded:
    """Choices by a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.integer(0, len(items) - 1)]

    def chance(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent


@cache
def rules(text: str) -> dict[str, t.Rule]:
    return {rule.name.text: rule for rule in parse(text, "test.lissom").all(t.Rule)}


@cache
def shipped() -> dict[str, t.Rule]:
    return {name: rule for file in FILES for name, rule in rules(library(file)).items()}


def subject(rule: t.Rule) -> Subject:
    return Subject(rule, Vocabulary.library(), FUNCTIONS)


def grown_for(rule: t.Rule, count: int = 200, wanted: int = 20, verify: bool = True):
    found = subject(rule)
    seeds = [lambda seed=seed: model(Seeded(seed), found) for seed in range(count)]
    return specimens(found, seeds, wanted, verify)


def mutants_of(rule: t.Rule) -> tuple[Mutant, ...]:
    return mutants(rule, Vocabulary.library())


def texts(rule: t.Rule) -> dict[str, str]:
    return {mutant.text: mutant.name for mutant in mutants_of(rule)}


def told(fates: Sequence[Fate]) -> list[str]:
    return [f"{fate.mutant.name}: {fate.mutant.text} ({fate.reason})" for fate in fates]


# -- which mutants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_rule_of_the_library_has_enough_mutants_each_another_rule(name: str) -> None:
    rule = shipped()[name]
    found = mutants_of(rule)
    assert len(found) >= LEAST
    assert len({mutant.source for mutant in found}) == len(found)
    assert rule not in {mutant.source for mutant in found}
    assert all(mutant.text.split(" -> ")[0] != mutant.text.split(" -> ")[1] for mutant in found)


FOLDING = {
    "n.running_var + n.eps -> n.running_var": "epsilon dropped",
    "n.eps -> n.eps / 10": "epsilon ten times too small",
    "sqrt(n.running_var + n.eps) -> sqrt(n.running_var) + n.eps": "epsilon moved outside of sqrt",
    "sqrt(n.running_var + n.eps) -> n.running_var + n.eps": "sqrt left out",
    "n.weight or 1 -> 1": "weight ignored",
    "axis = 0 -> axis = 1": "axis became 1",
    "n.running_mean * g -> n.running_mean": "`g` dropped",
    "(c.bias or 0) * g -> c.bias or 0": "`g` dropped",
    "(n.bias or 0) - n.running_mean * g -> n.bias or 0": "product dropped",
    "(n.bias or 0) - n.running_mean * g -> (n.bias or 0) + n.running_mean * g": "minus became plus",
    "n.bias or 0 -> 0": "bias ignored",
    "bias = (c.bias or 0) * g + b -> bias = none": "bias dropped",
    "nothing -> stride = c.stride * 2": "stride doubled",
}
"""Mistakes that were made in folding batch norm, and how they are told."""


def test_known_mistakes_in_folding_are_among_the_mutants() -> None:
    found = texts(shipped()["fold_bn"])
    assert {text: found.get(text) for text in FOLDING} == FOLDING
    for function in ("_half", "_bfloat16", "_flipped", "_mirrored", "_transposed", "_positive"):
        scaled = "scale(c.weight, g, axis = 0)"
        assert f"weight = {scaled} -> weight = {function}({scaled})" in found


EQUIVALENT = """
exact rule by_hand {
  match {
    h = conv2d(u) as c
    g = relu(h)
    y = logsumexp(x, dim = -1, keepdim = true)
    z = mean(x, dim = (0, 1), keepdim = true, dtype = none)
    x : f[N, C]
    c.weight : f[O, I, KERNEL]
  }
  rewrite {
    g = c(u)
    e = exp(x)
    s = sum(e, dim = -1, keepdim = true)
    y = log(s)
    z = mean(x, dim = (0, 1), keepdim = true)
  }
}
"""


def test_what_changes_no_number_is_no_mutant() -> None:
    """The sum of exponentials is not nan, its last axis of two is axis 1, two axes are a set, and a
    kernel of one pixel has no dilation.
    """
    text = EQUIVALENT.replace("KERNEL", "1, 1")
    found = {m.name for m in mutants_of(parse(text).all(t.Rule)[0])}
    same = {"nansum built for sum", "sign dropped", "dilation doubled"}
    assert not found & (same | {"dim of the two axes swapped"})
    wide = EQUIVALENT.replace("KERNEL", "3, 1").replace("x : f[N, C]", "x : f[N, C, L]")
    found = {m.name for m in mutants_of(parse(wide).all(t.Rule)[0])}
    assert {"sign dropped", "dilation doubled"} <= found


def test_slices_pairs_and_products_are_changed() -> None:
    low_rank = texts(shipped()["low_rank_linear"])
    assert low_rank[":R -> :R - 1"] == "one too few taken"
    assert low_rank["bias = none -> bias = l.bias"] == "bias added"
    assert texts(shipped()["merge_linear"])["b.weight @ a.weight -> a.weight @ b.weight"]
    spatial = texts(shipped()["spatial_svd_conv"])
    assert spatial["stride = (s.0, 1) -> stride = (1, s.0)"] == "stride of the two axes swapped"
    assert spatial["d.1 -> d.0"] == "the other axis taken"


def test_a_rule_without_arithmetic_has_its_result_spoilt() -> None:
    found = {mutant.name for mutant in mutants_of(shipped()["drop_identity"])}
    assert {"`y` negated", "`y` rounded to bfloat16", "`y` cut off at 0"} <= found


def test_no_mutant_where_the_tree_shows_that_nothing_is_wrong() -> None:
    never_negative = {mutant.name for mutant in mutants_of(shipped()["drop_repeated_relu"])}
    assert not {"`y` made positive", "`y` cut off at 0"} & never_negative
    merged = texts(shipped()["merge_pointwise"])
    assert "padding = 0 -> nothing" not in merged, "0 is the default"
    assert "groups = 1 -> nothing" not in merged, "the number of groups follows from the weight"
    assert "h -> x" not in texts(shipped()["fold_scale"]), "both have the same rank"
    assert "dilation doubled" not in texts(shipped()["merge_pointwise"]).values()
    shared = [text for text in texts(shipped()["low_rank_linear"]) if "svd(" in text]
    assert not shared, "both halves of the rule read the factors"


SCALED = """
exact rule scaled {
  match { y = linear(x) as c; c.weight : [O, I]; c.bias : [O] }
  where { owned(c.weight, c.bias) }
  rewrite { y = linear(x, weight = c.weight, bias = c.bias or 0) from c }
}
"""


def test_a_default_that_is_never_used_is_not_changed() -> None:
    found = {mutant.name for mutant in mutants_of(rules(SCALED)["scaled"])}
    assert "bias ignored" in found
    assert "default of the bias changed" not in found


def test_no_rule_can_call_what_mutants_call() -> None:
    declared = Vocabulary.library().declarations
    assert all(declared.extern(name) is None for name in MUTATION_FUNCTIONS)
    assert not MUTATION_FUNCTIONS.keys() & FUNCTIONS.keys()


# -- who notices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["drop_identity", "drop_repeated_abs", "merge_linear"])
def test_every_mutant_dies_by_the_engine(name: str) -> None:
    rule = shipped()[name]
    found = score(subject(rule), grown_for(rule))
    assert told(found.survivors) == []
    assert found.by == {ENGINE: len(found.fates), MODEL: 0, CHECKER: 0}


def test_the_mistakes_in_folding_die() -> None:
    rule = shipped()["fold_bn"]
    samples = grown_for(rule, wanted=12)
    planted = [mutant for mutant in mutants_of(rule) if mutant.text in FOLDING]
    fates = [kill(mutant, samples) for mutant in planted]
    assert told([fate for fate in fates if not fate.killed]) == []
    assert {fate.by for fate in fates} == {ENGINE}
    assert any(fate.reason.startswith("V101") for fate in fates)


def test_without_verification_the_whole_model_tells() -> None:
    rule = shipped()["merge_linear"]
    samples = grown_for(rule, wanted=4, verify=False)
    mutant = next(m for m in mutants_of(rule) if m.name == "weight rounded to half precision")
    fate = kill(mutant, samples)
    assert fate.by == MODEL
    assert fate.ratio > 1
    assert "the model moves by" in fate.reason


UNCHECKED = """
approx rule halved {
  match { y = linear(x) as c }
  where { owned(c.weight) }
  rewrite { y = linear(x, weight = c.weight, bias = c.bias) from c }
  ensure { error(y) <= 90% on calib }
}
"""


def test_what_a_rule_does_not_promise_lets_mutants_survive() -> None:
    rule = rules(UNCHECKED)["halved"]
    samples = grown_for(rule, wanted=5)
    found = score(subject(rule), samples)
    alive = {fate.mutant.name for fate in found.survivors}
    assert "weight rounded to bfloat16" in alive
    assert "weight negated" not in alive, "its error is past the budget"
    assert found.killed + len(found.survivors) == len(found.fates)


def test_what_says_the_same_everywhere_is_no_mistake() -> None:
    rule, held = shipped()["fold_bn"], "b = (n.bias or 0) - n.running_mean * g\n"
    samples = grown_for(rule, wanted=4)

    def fate(text: str) -> Fate:
        source = rules(library("fold").replace(held, f"b = {text}\n"))["fold_bn"]
        assert source != rule
        return kill(Mutant("written otherwise", source, rule.span, text), samples)

    same = fate("(n.bias or 0) - n.running_mean * g * 1")
    assert not same.killed
    assert Score.of([same], len(samples)).fates == ()
    other = fate("(n.bias or 0) - n.running_mean * g * 1.0001")
    assert other.killed
    assert Score.of([other], len(samples)).fates == (other,)


def test_a_survivor_names_the_closest_call() -> None:
    rule = shipped()["merge_linear"]
    same = Mutant("nothing", rule, rule.span, "the rule itself")
    samples = grown_for(rule, wanted=5)
    fate = kill(same, samples)
    ratios = [fate_of.ratio for fate_of in (kill(same, [sample]) for sample in samples)]
    assert not fate.killed
    assert fate.ratio == max(ratios)
    assert fate.sample == ratios.index(fate.ratio)


def test_a_rule_that_never_applies_has_no_score() -> None:
    rule = shipped()["merge_linear"]
    found = score(subject(rule), [])
    assert found.killed == 0
    assert {fate.reason for fate in found.survivors} == {"no model on which the rule applies"}


def test_a_mutant_that_no_longer_applies_is_dead() -> None:
    rule = shipped()["merge_linear"]
    never = t.replace(rule, clauses=(*rule.clauses, rules(NEVER)["never"].one(t.Where)))
    fate = kill(Mutant("guarded", never, rule.span, ""), grown_for(rule, wanted=1))
    assert (fate.by, fate.reason) == (ENGINE, 'no longer applies: 1 > 2 else "never"')


NEVER = 'exact rule never { match { y = relu(x) } where { 1 > 2 else "never" } rewrite { y = x } }'


def test_the_checker_knows_what_the_models_do_not_show() -> None:
    """Where every model has a dilation of 1, a lost dilation shows in the text alone."""
    rule = shipped()["merge_conv_pointwise"]
    lost = next(m for m in mutants_of(rule) if m.text == "dilation = d -> nothing")
    plain = [s for s in grown_for(rule, wanted=6) if not kill_by_models(lost, s)]
    fate = kill(lost, plain)
    assert plain
    assert (fate.by, fate.reason[:4]) == (CHECKER, "S001")


def kill_by_models(mutant: Mutant, sample: Specimen) -> bool:
    try:
        return (
            isinstance(sample.ready(mutant.source), str)
            or (sample.apart(mutant.source) or 0) > 1e-9
        )
    except LissomError:
        return True


def test_trying_a_mutant_changes_no_sample() -> None:
    rule = shipped()["merge_linear"]
    (sample,) = grown_for(rule, wanted=1)
    before, code = sample.grown.module(*sample.grown.inputs), str(sample.grown.module.graph)
    alive = [m for m in mutants_of(rule) if not kill_by_models(m, sample)]
    assert alive
    assert str(sample.grown.module.graph) == code
    after = sample.grown.module(*sample.grown.inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


SUNK = """
exact rule sunk {
  match { h = neg(x); y = relu(h) as r }
  rewrite { z = r(x); y = neg(z) }
}
"""


def test_a_rule_with_few_mistakes_to_make_has_its_result_spoilt_too() -> None:
    found = texts(rules(SUNK)["sunk"])
    assert "y = neg(z) -> y = neg(z) * 2" in found
    assert "z -> y" in found
