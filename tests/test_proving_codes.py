"""The tester on rules about codes: what it draws for them, and which mistakes are none."""

from __future__ import annotations

import pytest

from lissom.grammar.library.program import library_shelf
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.choices.source import Rolled, Unsuitable
from lissom.rewrite.proving.mutants.mutants import mutants
from lissom.rewrite.proving.prove import prove
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import model


def subject(name: str) -> Subject:
    rule = library_shelf().get(name)
    assert rule is not None
    return Subject(rule, Vocabulary.library(), FUNCTIONS)


@pytest.mark.parametrize(
    ("name", "count"), [("int8_add", 120), ("order_codes", 60), ("join_codes", 60)]
)
def test_rules_about_codes_are_verified(name: str, count: int) -> None:
    """Sums that an op rounds to the type that it names are no polynomials; a mutant after which the
    model cannot run is noticed; as many operands are joined as there are.
    """
    proof = prove(subject(name), count)
    assert proof.failures == []
    assert proof.weak == []
    assert proof.verdict == "verified"


def test_codes_are_never_negative() -> None:
    rule = subject("drop_requantize")
    found = {mutant.name for mutant in mutants(rule.source, rule.vocabulary)}
    assert not {"`r` made positive", "`r` cut off at 0"} & found
    assert "`r` shifted by one" in found


def test_operands_in_the_shape_of_the_result_are_drawn_after_what_says_it() -> None:
    rule, added = subject("int8_conv2d_to_codes"), 0
    for seed in range(40):
        try:
            grown = model(Rolled(seed), rule)
        except Unsuitable:
            continue
        view = GraphView(grown.module)
        for node in view.calls_of("int8_conv2d"):
            _, other = view.call(node).inputs
            added += other is not None
            assert other is None or other.meta["val"].shape == node.meta["val"].shape
    assert added >= 10
