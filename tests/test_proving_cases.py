"""`test` blocks of rule files."""

from __future__ import annotations

import pytest

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.cases import CaseResult, run_test
from lissom.rewrite.proving.subject import Subject

from .support import library


def results(body: str) -> list[CaseResult]:
    text = "\n".join(library(name) for name in ("tidy", "fold", "lowrank"))
    rules = {rule.name.text: rule for rule in parse(text).all(t.Rule)}
    (test,) = parse(f"test said {{\n{body}\n}}").all(t.Test)
    vocabulary = Vocabulary.library()
    return run_test(test, lambda word: Subject(rules[word.text], vocabulary, FUNCTIONS), FUNCTIONS)


@pytest.mark.parametrize(
    "line",
    [
        "fires fold_bn on batch_norm(conv2d(x))",
        "fires fold_bn on relu(batch_norm(conv2d(x, groups = 2)))",
        "silent fold_bn on batch_norm(relu(conv2d(x)))",
        'silent fold_bn on batch_norm(conv2d(x), training = true) because "train mode"',
        "silent fold_bn on batch_norm(linear(x))",
        "fires drop_times_one on mul(x, 1)",
        "silent drop_times_one on mul(x, 2)",
        "fires drop_repeated_relu on relu(abs(x))",
        "fires low_rank_linear on linear(x)",
        "check rank_for_share(50%, 4, 64) == 8",
    ],
)
def test_what_holds(line: str) -> None:
    (result,) = results(line)
    assert result.holds, result.seen


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("silent fold_bn on batch_norm(conv2d(x))", "fired on"),
        ("fires fold_bn on batch_norm(conv2d(x), training = true)", "train mode"),
        ('silent fold_bn on batch_norm(conv2d(x), training = true) because "shared"', "train mode"),
        ("fires fold_bn on convolve(x)", "no op is called `convolve`"),
        ("fires fold_bn on x", "a model is written as calls of ops"),
        ("fires drop_times_one on mul(x, 2)", "fired on 0 of 20 models"),
        ("check rank_for_share(50%, 4, 64) == 9", "rank_for_share"),
        ("check nonsense(3)", "no function `nonsense`"),
    ],
)
def test_what_does_not_hold(line: str, seen: str) -> None:
    (result,) = results(line)
    assert not result.holds
    assert seen in result.seen
