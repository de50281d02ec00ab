"""Certified bounds hold for every input, the worst ones included, and are no larger than needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lissom.rewrite.apply import bounds
from lissom.rewrite.journal import Applied
from lissom.rewrite.ops.call import OpCall

from .support import Fn, library, random_norms, rules_of, run

LAYERS = {
    "linear": (nn.Linear(12, 7), (5, 12)),
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), (3, 6, 9)),
    "conv2d": (nn.Conv2d(6, 9, 3, padding=1), (2, 6, 7, 5)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), (2, 6, 7, 5)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, dilation=2), (2, 6, 7, 7)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (2, 6, 5, 5)),
}


def call_of(layer: nn.Module, x: Tensor) -> OpCall:
    driven = run(Fn(lambda m, x: m.layer(x), layer=layer), x, library("tidy"))
    (call,) = [c for n in driven.state.module.graph.nodes if (c := driven.state.view.call(n))]
    return call


def moves(layer: nn.Module, change: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """At each position: |change of the result|^2, and |what the position reads|^2."""
    groups, axis = getattr(layer, "groups", 1), 1 if x.dim() > 2 else -1

    def through(weight: Tensor, x: Tensor) -> Tensor:
        named = {"weight": weight, "bias": torch.zeros_like(layer.bias).double()}
        return torch.func.functional_call(layer, named, (x,)).movedim(axis, 0)

    moved = through(change, x).square().sum(0)
    read = through(torch.ones_like(change), x.square())  # the same in each channel of a group
    return moved, read.unflatten(0, (groups, -1))[:, 0].sum(0)


@pytest.mark.parametrize("name", LAYERS)
def test_no_input_breaks_the_bound(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    change = torch.randn_like(layer.weight).double()
    bound, kind = bounds.norm(change, call_of(layer, torch.randn(shape)))
    assert kind == "spectral"
    for _ in range(50):
        x = torch.randn(shape).double() * torch.rand(shape).double() ** 4
        moved, read = moves(layer, change, x)
        assert (moved <= bound**2 * read * (1 + 1e-9) + 1e-12).all()


def test_the_worst_input_reaches_the_bound() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 7)
    change = torch.randn(7, 12).double()
    bound, _ = bounds.norm(change, call_of(layer, torch.randn(2, 12)))
    worst = torch.linalg.svd(change)[2][0]
    assert float((change @ worst).norm()) == pytest.approx(bound, rel=1e-6)


def test_blocks_of_groups_do_not_add_up() -> None:
    """Every group reads other values: the norm of a depthwise weight is that of its largest row."""
    layer, shape = LAYERS["depthwise"]
    change = torch.randn_like(layer.weight)
    bound, _ = bounds.norm(change, call_of(layer, torch.randn(shape)))
    assert bound == pytest.approx(float(change.double().flatten(1).norm(dim=1).max()), rel=1e-6)


def test_a_weight_too_large_for_its_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LARGEST_GRAM", 4)
    layer, change = nn.Linear(12, 7), torch.randn(7, 12)
    bound, kind = bounds.norm(change, call_of(layer, torch.randn(2, 12)))
    assert kind == "Frobenius"
    assert bound == pytest.approx(float(change.double().norm()), rel=1e-6)


def test_a_truncated_svd_is_off_by_the_first_value_left_out() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 40)
    text = library("lowrank").replace("budget: frac = 15%", "budget: frac = 99%")
    rules = [rule for rule in rules_of(text, rank=4) if rule.name == "low_rank_linear"]
    driven = run(Fn(lambda m, x: m.layer(x), layer=layer), torch.randn(64, 48), rules, "once")
    (event,) = driven.journal.of(Applied)
    (verdict,) = [verdict for verdict in event.verdicts if verdict.claim == bounds.CLAIM]
    values = torch.linalg.svdvals(layer.weight.detach().double())
    assert verdict.how == "proved"
    assert verdict.worst == pytest.approx(float(values[4] / values[0]), rel=1e-6)
    assert f"{float(values[4]):.4g} |v| (spectral norm)" in verdict.detail


def test_an_exact_rule_moves_nothing() -> None:
    model = random_norms(Fn(lambda m, x: m.n(m.c(x)), c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4)))
    driven = run(model, torch.randn(2, 3, 6, 6), library("fold"))
    claims = [v.claim for event in driven.journal.of(Applied) for v in event.verdicts]
    assert claims
    assert bounds.CLAIM not in claims


class Allocated(TorchDispatchMode):
    """The bytes of all memory that ops return and that `given` does not hold."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.blocks = {given.untyped_storage().data_ptr(): 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(value, Tensor):
                block = value.untyped_storage()
                self.blocks.setdefault(block.data_ptr(), block.nbytes())
        return found


def test_a_norm_takes_little_beside_the_weight() -> None:
    """The products of its rows are few. Whether all of it is finite is asked without a copy."""
    layer = nn.Linear(1000, 10)
    call, weight = call_of(layer, torch.randn(2, 1000)), layer.weight.detach().double()
    with Allocated(weight) as allocated:
        found, kind = bounds.norm(weight, call)
    assert (found, kind) == (pytest.approx(float(torch.linalg.matrix_norm(weight, 2))), "spectral")
    assert 0 < sum(allocated.blocks.values()) < weight.nbytes / 4
    weight[3, 500] = torch.nan
    assert bounds.norm(weight, call) == (torch.inf, "spectral")
