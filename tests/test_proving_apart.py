"""The first number that differs between a model and its rewritten form."""

from __future__ import annotations

import pytest

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.choices.source import Rolled, Unsuitable
from lissom.rewrite.proving.distance import first_difference
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import model

RULE = """
exact rule halves {
  match { h = mul(x, 0.5)
          y = mul(h, 0.5) }
  rewrite { y = REWRITE }
}
"""


def told(rewrite: str, count: int = 12) -> set[str]:
    """What is said of several generated models, without places and numbers."""
    (rule,) = parse(RULE.replace("REWRITE", rewrite)).all(t.Rule)
    subject = Subject(rule, Vocabulary.library(), FUNCTIONS)
    found = set()
    for seed in range(count):
        try:
            grown = model(Rolled(seed), subject)
        except Unsuitable:
            continue
        found.add(first_difference(subject, grown).partition(" at [")[0])
    return found


@pytest.mark.parametrize(
    ("rewrite", "said"),
    [
        ("mul(x, 0.25)", "no output differs beyond rounding"),
        ("mul(x, 0.2501)", "output 0"),
        ("neg(x)", "output 0"),
    ],
)
def test_what_differs_is_named(rewrite: str, said: str) -> None:
    assert said in told(rewrite)
    assert (said == "output 0") != (told(rewrite) == {"no output differs beyond rounding"})


def test_another_shape_is_named() -> None:
    found = told("flatten(x, start_dim = 0)")
    assert any("before, torch.float32 [" in line for line in found) or any(
        line.startswith("the rewritten model cannot run") for line in found
    )
