"""Sparse weights: exactly so many zeros, in the promised places, within a budget, and once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.jobs import testing
from lissom.passes.sparsity import largest_of_each, without_smallest
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.proving.report import RuleReport
from lissom.rewrite.store.folder import load

from .support import LIBRARY, library

SPARSE = library("sparse")
KINDS = [
    pytest.param(nn.Linear(24, 10), (4, 24), id="linear"),
    pytest.param(nn.Conv1d(8, 6, 3), (2, 8, 9), id="conv1d"),
    pytest.param(nn.Conv2d(8, 6, 3), (2, 8, 6, 6), id="conv2d"),
    pytest.param(nn.Conv3d(4, 6, 2), (2, 4, 4, 4, 4), id="conv3d"),
    pytest.param(nn.Conv2d(16, 6, 3, groups=2), (2, 16, 6, 6), id="grouped"),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: nn.Module) -> nn.Module:
    """The model in eval mode, with weights that do not depend on what was made before."""
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            weight.copy_(normal(*weight.shape, seed=seed))
    return model.eval()


def compiled(model: nn.Module, shape: tuple[int, ...], step: str, budget: str = "1000%") -> Any:
    """With as many inputs of calibration data as the example inputs are."""
    data = 'data calib = sample("train", all)'
    limit = f"budget drift(outputs) <= {budget}"
    program = f"pipeline p {{ {data}; {limit}; stage s {{ {step} }} }}"
    x = normal(*shape, seed=99)
    given = {"inputs": (x,), "data": lambda split: [(x, None)]}
    return lissom.compile(model, SPARSE + program, **given)


def layers(model: nn.Module) -> list[Any]:
    """The layers with weights; a rewritten one stands in a module of its old name."""
    found = ((name, m) for name, m in model.named_modules() if hasattr(m, "weight"))
    return [layer for _, layer in sorted(found, key=lambda item: item[0])]


def zeros(weight: Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())


def groups(weight: Tensor, m: int) -> Tensor:
    """How many numbers of each group of `m` along the inputs are not 0."""
    parts = weight.unflatten(1, (-1, m)).movedim(2, -1)
    return parts.count_nonzero(-1)


# -- the numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "count"),
    [(0.0, 0), (0.1, 9), (0.29, 26), (0.3, 27), (1 / 3, 30), (0.999, 89), (1, 90)],
)
def test_exactly_the_share_is_zero(ratio: float, count: int) -> None:
    """0.29 * 90 = 26.1 is 26; 0.3 * 90 is a little less than 27 in floating point, and is 27."""
    assert zeros(without_smallest(normal(10, 9), ratio)) == count


def test_what_stays_is_the_largest_and_unchanged() -> None:
    w = normal(6, 5, 2).half()
    found = without_smallest(w, 0.5)
    assert found.dtype == w.dtype
    stay = found != 0
    assert torch.equal(found[stay], w[stay])
    assert w[stay].abs().min() > w[~stay].abs().max()


def test_ties_are_broken_by_place() -> None:
    w = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    found = without_smallest(w, 0.75)
    assert found.tolist() == [[1.0, -1.0, 0.0, 0.0], [0.0] * 4]
    assert largest_of_each(w, 2, 4).tolist() == [[1.0, -1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]


def test_groups_lie_along_the_inputs_of_each_tap() -> None:
    w = normal(3, 8, 2, 2)
    found = largest_of_each(w, 1, 4)
    for o, i, *tap in torch.cartesian_prod(*map(torch.arange, (3, 2, 2, 2))).tolist():
        group = w[o, 4 * i : 4 * i + 4, *tap]
        kept = found[o, 4 * i : 4 * i + 4, *tap]
        assert kept.nonzero().flatten().tolist() == [int(group.abs().argmax())]


def test_arguments_that_make_no_sense() -> None:
    w = normal(4, 6)
    for call in (
        lambda: without_smallest(w, 1.5),
        lambda: largest_of_each(w, 5, 4),
        lambda: largest_of_each(w, 2, 4),
        lambda: largest_of_each(normal(4), 2, 4),
    ):
        with pytest.raises(LissomError, match="K001"):
            call()
    with pytest.raises(LissomError, match="K002"):
        without_smallest(torch.full((2, 2), torch.nan), 0.5)


def test_models_are_grown_around_the_pattern() -> None:
    """`c.weight : [O, I, ...]` is one clause for layers of every rank."""
    (job,) = testing.jobs_of([LIBRARY / "sparse.lissom"], ["prune_n_of_m"], 40, 0, None)
    report = testing.prove_job(job)
    assert isinstance(report, RuleReport)
    assert not report.failures
    assert report.fired > 20


# -- the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "shape"), KINDS)
def test_weights_of_every_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = drawn(nn.Sequential(layer))
    result = compiled(model, shape, "once prune_weights(ratio = 40%)")
    (event,) = result.journal.of(Applied)
    assert all(verdict.holds for verdict in event.verdicts)
    (old,), (new,) = layers(model), layers(result.model)
    before, after = old.weight, new.weight
    assert zeros(after) == int(0.4 * after.numel() * (1 + 1e-9))
    assert torch.equal(after[after != 0], before[after != 0])
    assert torch.equal(new.bias, old.bias)
    assert zeros(before) == 0
    assert event.after.bytes == event.before.bytes


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
@pytest.mark.parametrize(("layer", "shape"), KINDS)
def test_n_of_m_of_every_layer(layer: nn.Module, shape: tuple[int, ...], n: int, m: int) -> None:
    model = drawn(nn.Sequential(layer))
    result = compiled(model, shape, f"once prune_n_of_m(n = {n}, m = {m}, budget = 100%)")
    assert len(result.applied) == 1
    weight = layers(result.model)[0].weight
    assert torch.all(groups(weight, m) == n)
    assert torch.equal(weight[weight != 0], model[0].weight[weight != 0])


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.Linear(6, 5), (2, 6), "6 inputs are no multiple of 4"),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 5, 5), "1 inputs are no multiple of 4"),
        (nn.Conv2d(12, 4, 1, groups=2), (1, 12, 5, 5), "6 inputs are no multiple of 4"),
    ],
)
def test_inputs_that_no_groups_fit(layer: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    result = compiled(drawn(nn.Sequential(layer)), shape, "once prune_n_of_m")
    (refused,) = result.journal.of(Refused)
    assert refused.reason == reason
    assert not result.applied


def test_n_of_m_that_keeps_everything() -> None:
    result = compiled(drawn(nn.Linear(8, 4)), (2, 8), "once prune_n_of_m(n = 4, m = 4)")
    assert [event.reason for event in result.journal.of(Refused)] == ["4 of 4 keeps everything"]


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


@pytest.mark.parametrize("rule", ["prune_weights", "prune_n_of_m"])
def test_a_shared_weight_is_left_alone(rule: str) -> None:
    result = compiled(drawn(Tied()), (3, 8), f"once {rule}(budget = 100%)")
    assert not result.applied
    assert all("weight is shared" in event.reason for event in result.journal.of(Refused))


def two_layers() -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)))


@pytest.mark.parametrize("rule", ["prune_weights", "prune_n_of_m"])
def test_a_fixpoint_ends(rule: str) -> None:
    result = compiled(two_layers(), (4, 16), f"fixpoint {{ {rule}(budget = 100%) }}")
    assert len(result.applied) == 2
    again = compiled(result.model.eval(), (4, 16), f"fixpoint {{ {rule}(budget = 100%) }}")
    assert not again.applied
    words = ("are not 0", "are left already")
    assert all(event.reason.endswith(words) for event in again.journal.of(Refused))


def test_both_rules_meet_on_one_layer() -> None:
    """What 2 of 4 left is half zeros: half of the weights need no other zeros, 60 % do."""
    text = "once prune_n_of_m(budget = 100%); once prune_weights(ratio = {}, budget = 100%)"
    half, more = (compiled(two_layers(), (4, 16), text.format(r)) for r in ("50%", "60%"))
    assert len(half.applied) == 2
    assert len(more.applied) == 4
    weight = layers(more.model)[0].weight
    assert zeros(weight) == int(0.6 * weight.numel())
    assert groups(weight, 4).max() == 2


def test_a_budget_of_the_rule() -> None:
    result = compiled(two_layers(), (4, 16), "once prune_weights(budget = 1%)")
    assert not result.applied
    assert {event.code for event in result.journal.of(Refused)} == {"B001"}


def test_a_budget_of_the_pipeline_takes_all_of_it_back() -> None:
    model = two_layers()
    result = compiled(model, (4, 16), "once prune_weights(budget = 100%)", budget="0.1%")
    x = normal(4, 16, seed=99)
    assert torch.equal(result.model(x), model(x))
    assert [zeros(layer.weight) for layer in layers(result.model)] == [0, 0]


@pytest.mark.parametrize("rule", ["prune_weights", "prune_n_of_m"])
def test_zeros_are_there_after_loading(rule: str, tmp_path: Path) -> None:
    result = compiled(two_layers(), (4, 16), f"once {rule}(budget = 100%)")
    result.save(tmp_path / "sparse")
    again = load(tmp_path / "sparse").module
    for layer, old in zip(layers(again), layers(result.model), strict=True):
        assert torch.equal(layer.weight, old.weight)
        assert zeros(layer.weight) == layer.weight.numel() // 2
