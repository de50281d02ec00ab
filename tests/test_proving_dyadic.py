"""Bit equality on dyadic numbers: planted bugs are found, correct rules raise no alarm."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.bits import dyadic as module
from lissom.rewrite.proving.bits.dyadic import (
    BIT_EQUAL,
    DIFFERS,
    NOT_APPLICABLE,
    PREMISE,
    DyadicResult,
    check_dyadic,
    dyadic,
)
from lissom.rewrite.proving.choices.source import Rolled, Unsuitable
from lissom.rewrite.proving.models.grown import Grown
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import model

from .support import library
from .test_verify import FOLD_FUNCTIONS, FOLD_MUTANTS, fold

GUARDED = """where {
    n.track_running_stats
    mode(n) == eval
    known(n.weight) and known(n.bias) and known(c.bias)
  }
  let {"""
SEEDS = range(25)


@cache
def subjects(text: str) -> dict[str, Subject]:
    known = {**FUNCTIONS, **FOLD_FUNCTIONS}
    rules = parse(text, "test.lissom").all(t.Rule)
    return {rule.name.text: Subject(rule, Vocabulary.library(), known) for rule in rules}


def the(text: str) -> Subject:
    (subject,) = subjects(text).values()
    return subject


def grown(subject: Subject, seed: int) -> Grown | None:
    try:
        return model(Rolled(seed), subject)
    except Unsuitable:
        return None


def each(subject: Subject, seeds: range) -> Iterator[DyadicResult]:
    for seed in seeds:
        found = grown(subject, seed)
        if found is not None:
            yield check_dyadic(subject, found, seed)


def results(subject: Subject, seeds: range = SEEDS) -> list[DyadicResult]:
    return list(each(subject, seeds))


def wrong_fold(name: str) -> Subject:
    text = fold(FOLD_MUTANTS.get(name, {})).replace("let {", GUARDED)
    return the(text)


def verdicts(subject: Subject, seeds: range = SEEDS) -> list[str]:
    return [result.verdict for result in results(subject, seeds)]


@pytest.mark.parametrize("name", FOLD_MUTANTS)
def test_every_wrong_fold_is_found(name: str) -> None:
    found = each(wrong_fold(name), range(200))
    assert any(result.verdict == DIFFERS for result in found)


def test_the_right_fold_is_bit_equal() -> None:
    found = verdicts(wrong_fold(""), range(60))
    assert DIFFERS not in found
    assert found.count(BIT_EQUAL) >= 5


@pytest.mark.parametrize("file", ["fold", "absorb", "merge", "tidy"])
def test_the_library_raises_no_alarm(file: str) -> None:
    for name, subject in subjects(library(file)).items():
        found = results(subject, range(8))
        assert [r for r in found if r.verdict == DIFFERS] == [], name


def test_a_difference_says_where() -> None:
    subject = the("exact rule r { match { y = neg(x) } rewrite { y = x } }")
    found = check_dyadic(subject, model(Rolled(0), subject))
    assert found.verdict == DIFFERS
    assert found.before == -found.after != 0
    assert len(found.index) >= 1


def test_numbers_that_are_not_dyadic_are_not_judged() -> None:
    found = results(subjects(library("lowrank"))["low_rank_conv"])
    assert DIFFERS not in [result.verdict for result in found]
    assert any(result.reason.startswith(PREMISE) for result in found)


def test_narrow_weights_hide_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why weights are as wide as the sums allow."""
    monkeypatch.setattr(module, "WIDTHS", (4,))
    assert DIFFERS not in verdicts(wrong_fold("weights rounded to float16"))


def test_a_sum_that_does_not_fit_shrinks_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of three weights of 24 bits and an input are rounded, those of 8 bits are not."""
    monkeypatch.setattr(module, "WIDTHS", (40, 4))
    text = """exact rule r { match { h = linear(x) as a
        y = linear(h) as b }
      rewrite { y = linear(x, weight = b.weight @ a.weight,
        bias = matvec(b.weight, a.bias or 0) + (b.bias or 0)) from b } }"""
    found = [r for r in results(the(text), range(12)) if r.verdict != NOT_APPLICABLE]
    assert {result.verdict for result in found} == {BIT_EQUAL}
    assert 4 in {result.width for result in found}


def test_the_model_is_dyadic_and_the_given_one_stays() -> None:
    subject = subjects(library("fold"))["fold_bn"]
    seed = next(s for s in range(50) if (g := grown(subject, s)) and "running_var" in held(g))
    given = model(Rolled(seed), subject)
    before = {name: value.clone() for name, value in given.module.state_dict().items()}
    made = dyadic(subject, given, 0, width=6)
    for name, value in made.module.state_dict().items():
        assert torch.equal(given.module.state_dict()[name], before[name])
        if value.is_floating_point():
            assert value.dtype == torch.float64
            assert torch.equal(value * 2**8, (value * 2**8).round())
        if name.endswith("weight"):
            assert torch.equal(value.sign(), before[name].sign().double())
    assert made.planted[0].nodes.keys() == given.planted[0].nodes.keys()


def held(found: Grown) -> str:
    return " ".join(found.module.state_dict())


UNGUARDED = """
exact rule pool_first {
  match {
    h = batch_norm(x) as n
    y = max_pool2d(h) as p
  }
  rewrite {
    z = p(x) from p
    y = n(z) from n
  }
}
"""


def test_norms_without_statistics_or_with_impossible_ones_end_in_a_verdict() -> None:
    """Nobody knows what a batch's own variance rounds, nor the root of a negative one."""
    assert {BIT_EQUAL, DIFFERS} < set(verdicts(the(UNGUARDED), range(60)))
