"""Rounds, controls and rewinds at their edges; what rules say of weights, one behind another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lissom.demo import model as digits
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.runtime import Int8Linear

from .learning import SGD, ends, notes, run, trained, weights

TUNE = f"recover tune {{ epochs = 1; {SGD} }}"
HALF = "stage prune { once prune_weights(ratio = 50%, budget = 100%) }"
NEARLY_ALL = "stage prune { once prune_weights(ratio = 99%, budget = 100%) }"
STRICT = "budget drop(accuracy) <= 1% on valid\n"


@pytest.fixture(scope="module")
def good() -> nn.Module:
    """A network that a budget can be broken of."""
    return run(f"recover dense {{ epochs = 4; {SGD} }}").model.eval()


def zeros(w: Tensor) -> float:
    return float((w == 0).float().mean())


# -- rounds and rollback ---------------------------------------------------------------------------


def test_a_pipeline_goes_on_behind_a_training_that_was_taken_back(good: nn.Module) -> None:
    more = "stage more { once prune_weights(ratio = 10%, budget = 100%) }"
    result = run(f"{STRICT} {NEARLY_ALL} {TUNE} {more}", good)
    assert [(e.stage, e.kept) for e in ends(result)] == [
        ("prune", False), ("tune", False), ("more", True),
    ]  # fmt: skip
    assert all(0.09 < zeros(w) < 0.11 for w in weights(result.model))


@pytest.mark.parametrize("inner", [NEARLY_ALL, f"{TUNE} {NEARLY_ALL}"])
def test_a_round_ends_where_a_stage_without_a_training_breaks(inner: str, good: nn.Module) -> None:
    result = run(f"{STRICT} repeat max 5 {{ {inner} }}", good)
    assert not any(end.kept for end in ends(result))
    assert {end.stage.split()[-1] for end in ends(result)} == {"1"}
    assert "round 1 broke what was asked" in notes(result, "W707")[0]
    assert all(torch.equal(a, b) for a, b in zip(weights(result.model), weights(good), strict=True))


@pytest.mark.parametrize("head", ["repeat max 0", "repeat share in []"])
def test_a_repeat_without_a_round_says_so(head: str) -> None:
    result = run(f"{head} {{ {TUNE} }}")
    assert trained(result) == []
    assert "has no round" in notes(result, "W707")[0]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (f"repeat share in 3 {{ {TUNE} }}", "T001"),
        (f"{TUNE} rewind drawn(sed = 1)", "F106"),
        (f"{TUNE} rewind drawn(1.5)", "F106"),
        (f"{TUNE} rewind drawn(1, 2)", "F106"),
        (f"control c {{ checkpoint start\n {TUNE} }} rewind start", "N001"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_trained(body: str, code: str) -> None:
    def never(model: nn.Module, batches: object) -> float:
        raise AssertionError

    with pytest.raises(LissomError) as caught:
        run(body, metrics={"accuracy": never})
    (said,) = caught.value.diagnostics
    assert said.code == code
    assert said.labels[0].span is not None


# -- what rules say of one weight ------------------------------------------------------------------


def test_integer_layers_take_what_was_trained_on_their_grid() -> None:
    """Codes are no numbers that move: what was said of the weight ends with it."""
    grid = "stage grid { once grid_weights(bits = 8, budget = 100%) }"
    codes = "stage codes { once watch; calibrate calib; once int8_linear }"
    result = run(f"{grid} recover tune {{ epochs = 3; {SGD} }} {codes}")
    layers = [m for m in result.model.modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 2
    on_grid = run(f"{grid} recover tune {{ epochs = 3; {SGD} }}")
    for layer, w in zip(layers, weights(on_grid.model), strict=True):
        steps = 127 * w / w.abs().amax(1, keepdim=True)
        assert torch.equal(layer.weight.float(), steps.round())


@pytest.mark.parametrize(
    ("first", "second", "lost"),
    [
        (HALF, "stage signs { once binary_weights }", "prune_weights"),
        ("stage signs { once binary_weights }", HALF, "binary_weights"),
    ],
)
def test_a_rule_that_undoes_what_another_said_is_told(first: str, second: str, lost: str) -> None:
    """Signs know no zero, and a mask is the zeros that it had, not those that there are."""
    result = run(f"{first} {second} {TUNE} recover more {{ epochs = 1; {SGD} }}")
    said = notes(result, "F102")
    assert len(said) == 2  # one for each layer, in the first training alone
    assert all(f"what `{lost}` made it" in text for text in said)
    assert all("2 weights" in event.verdicts[0].detail for event in trained(result))


def test_a_mask_and_a_grid_hold_together_in_either_order() -> None:
    grid = "stage grid { once grid_weights(bits = 4, budget = 100%) }"
    for body in (f"{HALF} {grid}", f"{grid} {HALF}"):
        result = run(f"{body} recover tune {{ epochs = 2; {SGD} }}")
        assert notes(result, "F102") == []
        for w in weights(result.model):
            assert 0.5 <= zeros(w) < 0.6
            steps = 7 * w / w.abs().amax(1, keepdim=True)
            assert float((steps - steps.round()).abs().max()) < 1e-4


def test_controls_leave_no_teacher_behind() -> None:
    body = f"control c {{ {TUNE} }} recover more {{ epochs = 1; teacher = tune; loss = kl() }}"
    with pytest.raises(LissomError, match="F105"):
        run(body, data=digits.data)
