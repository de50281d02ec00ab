"""Edges of rules that generated models found: no axes, no features, guards that are arrays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Applied

from .support import Fn, library, random_norms, run

ARRAY = """
exact rule drop_neg {
  match { h = linear(x) as c
          y = neg(h) }
  where { c.weight }
  rewrite { y = c(x) }
}
"""


def test_a_guard_that_is_an_array_is_a_clear_error() -> None:
    model = Fn(lambda m, x: -m.layer(x), layer=nn.Linear(3, 4))
    with pytest.raises(LissomError) as caught:
        run(model, torch.randn(2, 3), ARRAY)
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == ("T001", "a guard is true or false, and this is an array")
    assert found.labels[0].text == "[4, 3] numbers"


WRONG = """
exact rule double_weight {
  match { y = linear(x) as c }
  rewrite { y = c(x, weight = c.weight * 2) from c }
}
"""


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(("batch", "features"), [(0, 4), (2, 0)])
def test_results_without_numbers_hide_no_mistake(batch: int, features: int) -> None:
    """Any two empty results are equal."""
    model = Fn(lambda m, x: m.layer(x), layer=nn.Linear(3, features))
    driven = run(model, torch.zeros(batch, 3), WRONG)
    (refused,) = driven.refusals()
    assert (refused.code, driven.applied) == ("V106", 0)


def test_an_empty_batch_is_checked_on_two_samples() -> None:
    model = random_norms(Fn(lambda m, x: m.n(m.c(x)), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4)))
    driven = run(model, torch.zeros(0, 3, 6, 6), library("fold"))
    (event,) = driven.journal.of(Applied)
    tested = [verdict for verdict in event.verdicts if verdict.how == "tested"]
    assert tested
    assert all(verdict.samples >= 2 and verdict.worst for verdict in tested)
