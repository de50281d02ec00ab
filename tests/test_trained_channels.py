"""Channels of published, trained models: every dimension is cut and verified, the weakest first."""

from __future__ import annotations

from functools import cache

import pytest

import lissom
from lissom.rewrite.dim_site import EXACT_CUT
from lissom.rewrite.journal import Applied, Refused

from .support import library
from .test_trained_models import trained

pytestmark = pytest.mark.slow

CUTS = {"mnist_cnn": 4, "efficientnet_lite0": 24, "minilm": 24}
"""How many dimensions lose something."""


@cache
def pruned(name: str) -> lissom.Result:
    budget = "budget drift(outputs) <= 1000%"
    program = f"pipeline p {{ {budget}; stage s {{ once prune_l1(ratio = 30%) }} }}"
    return trained(name).run(program)


@pytest.mark.parametrize("name", CUTS)
def test_every_dimension_but_the_output_is_cut_and_verified(name: str) -> None:
    """Every cut model equals the masked one on the example inputs."""
    result = pruned(name)
    events = result.journal.of(Applied)
    assert len(events) == CUTS[name]
    assert all(event.verdicts[0].claim == EXACT_CUT for event in events)
    assert all(verdict.holds for event in events for verdict in event.verdicts)
    assert {event.reason for event in result.journal.of(Refused)} == {"it can be seen at output"}
    assert result.after.params < 0.85 * result.before.params
    assert result.after.macs < 0.75 * result.before.macs


def test_the_weakest_channels_of_a_trained_model_are_worth_little() -> None:
    """A third of all channels by L1 norm against a third at random, neither trained again."""
    subject, weak = trained("mnist_cnn"), pruned("mnist_cnn")
    rule = library("prune").replace("l1_over(writers(D))", "drawn(D)")
    step = "stage s { once prune_l1(ratio = 30%) }"
    drawn = subject.run(f"{rule} pipeline p {{ budget drift(outputs) <= 1000%; {step} }}")
    assert subject.measured(weak.model) > subject.measured(subject.model) - 0.01
    assert subject.measured(drawn.model) < subject.measured(weak.model)
    assert weak.after.params == drawn.after.params
