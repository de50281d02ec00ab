"""Approximate rules keep their word: the budget, measured apart from the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply import claims
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.budget_check import Kept, confidence
from lissom.rewrite.proving.prove import explore
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.trial import WRONG

from .support import Fn, library, rules_of, run

RULE = "low_rank_linear"


def subject() -> Subject:
    (rule,) = [r for r in parse(library("lowrank")).all(t.Rule) if r.name.text == RULE]
    return Subject(rule, Vocabulary.library(), FUNCTIONS)


def named(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, m.w)


def layer(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.l(x)


@pytest.mark.parametrize("function", [named, layer])
def test_a_weight_that_a_function_reads_counts_as_one_in_a_layer(
    function: Callable[..., Any],
) -> None:
    """Its perturbation was measured with the weight as it was: every error was 0."""
    torch.manual_seed(0)
    held = nn.Linear(40, 40, bias=False)
    rules = [rule for rule in rules_of(library("lowrank"), rank=1) if rule.name == RULE]
    driven = run(Fn(function, l=held, w=held.weight), torch.randn(64, 40), rules, "once")
    (refused,) = driven.refusals()
    assert refused.code == "B001"
    assert "error(y) <= budget on calib" in refused.reason


def test_applications_stay_in_their_budget() -> None:
    found = explore(subject(), 12)
    assert found.failure is None
    assert len(found.kept) == found.fired >= 12 * 0.75
    assert all(one.holds for one in found.kept)
    assert any(one.given > 0 for one in found.kept)


def test_an_engine_that_measures_no_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_error", lambda state, site, plan, value, samples: 0.0)
    found = explore(subject(), 40)
    assert found.failure is not None
    assert (found.failure.outcome.kind, found.failure.outcome.condition) == (WRONG, "budget")


def test_an_engine_that_measures_less_than_there_is_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = claims._error
    monkeypatch.setattr(claims, "_error", lambda *given: 0.5 * measured(*given))
    found = explore(subject(), 200)
    assert found.failure is not None
    assert found.failure.outcome.condition == "budget"


@pytest.mark.parametrize(("count", "rate"), [(299, 0.01), (2_995, 0.001), (59, 0.05)])
def test_no_failure_in_n_trials(count: int, rate: float) -> None:
    found = confidence([Kept(0.5, 0.5, 0.1)] * count)
    assert found is not None
    assert found.rate_below == pytest.approx(rate, rel=0.01)
    assert (1 - found.rate_below) ** count == pytest.approx(0.05)


def test_nothing_is_said_without_applications() -> None:
    assert confidence([]) is None


def test_fresh_data_may_break_a_budget_and_is_counted() -> None:
    found = confidence([Kept(0.5, 1.5, 0.1), Kept(0.9, 0.9, 0.3)])
    assert found is not None
    assert (found.held, found.worst, found.fresh, found.drift_worst) == (2, 0.9, 0.5, 0.3)
