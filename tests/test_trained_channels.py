"""Channels of published, trained models: every dimension is cut and verified, the weakest first."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import lissom
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.targets.cuts import EXACT_CUT

from .support import leaves, library
from .test_trained_models import trained

pytestmark = pytest.mark.slow

CUTS = {"mnist_cnn": 4, "efficientnet_lite0": 24, "minilm": 24, "crnn": 11, "onet": 5, "crepe": 6}
"""How many dimensions lose something."""


@cache
def pruned(name: str) -> lissom.Result:
    budget = "budget drift(outputs) <= 1000%"
    program = f"pipeline p {{ {budget}; stage s {{ once prune_l1(ratio = 30%) }} }}"
    return trained(name).run(program)


@pytest.mark.parametrize("name", CUTS)
def test_every_dimension_that_can_be_is_cut_and_verified(name: str) -> None:
    """Every cut model equals the masked one on the example inputs."""
    result = pruned(name)
    events = result.journal.of(Applied)
    assert len(events) == CUTS[name]
    assert all(event.verdicts[0].claim == EXACT_CUT for event in events)
    assert all(verdict.holds for event in events for verdict in event.verdicts)
    reasons = {event.reason for event in result.journal.of(Refused)}
    assert reasons == {"it can be seen at output"}
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


@pytest.mark.parametrize(
    ("name", "layer", "channels", "positions"),
    [
        ("mnist_cnn", "fc_layers.0", 128, 9),
        ("onet", "dense5", 128, 9),
        ("crepe", "classifier", 64, 4),
    ],
)
def test_what_reads_flattened_channels_loses_all_positions_of_each(
    name: str, layer: str, channels: int, positions: int
) -> None:
    """O-Net flattens after it has put the channels last, CREPE to a size written as a number."""
    subject, result = trained(name), pruned(name)
    before, after = (model.get_submodule(layer) for model in (subject.model, result.model))
    left = math.ceil(0.7 * channels)
    assert before.in_features == channels * positions
    assert after.in_features == after.weight.shape[1] == left * positions
    with torch.no_grad():
        given, found = (leaves(model(*subject.inputs)) for model in (subject.model, result.model))
    assert [x.shape for x in found] == [x.shape for x in given]


def test_the_norm_after_a_relu_loses_what_the_convolution_before_it_lost() -> None:
    """CREPE's batch norms follow the ReLU, so that a removed channel is a constant, not zero."""
    subject, result = trained("crepe"), pruned("crepe")
    inputs = [0]
    for i in range(1, 7):
        conv, norm = (result.model.get_submodule(f"conv{i}{end}") for end in ("", "_BN"))
        old_conv, old = (subject.model.get_submodule(f"conv{i}{end}") for end in ("", "_BN"))
        rows = [(old.running_mean == mean).nonzero()[0].item() for mean in norm.running_mean]
        assert rows == sorted(set(rows))
        assert len(rows) == math.ceil(0.7 * old.num_features)
        assert torch.equal(norm.weight, old.weight[rows])
        assert torch.equal(conv.weight, old_conv.weight[rows][:, inputs])
        inputs = rows
