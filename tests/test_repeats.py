"""Layers that run several times, each in a site of one rule: all change alike, or none does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lissom

from .support import Driven, Fn, library, random_norms, run

X = torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(0))
EXACT = library("fold", "absorb", "merge")


def parts(**more: nn.Module) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"c": nn.Conv2d(6, 6, 3, padding=1), "n": nn.BatchNorm2d(6), **more}


def driven(function: Callable[..., Any], **more: nn.Module) -> Driven:
    return run(random_norms(Fn(function, **parts(**more))), X, EXACT).check()


def layers(found: Driven) -> set[str]:
    nodes = found.module.graph.nodes
    return {str(node.target) for node in nodes if node.op == "call_module"}


def branch(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.n(m.c(x)).relu()


ALIKE: dict[str, tuple[Callable[..., Any], int]] = {
    "two images": (lambda m, x: branch(m, x) - branch(m, x.flip(-1)), 2),
    "three calls": (lambda m, x: branch(m, x) + branch(m, x * x) - branch(m, x.flip(2)), 3),
    "two sizes": (lambda m, x: branch(m, x).mean((2, 3)) - branch(m, x[..., 2:]).mean((2, 3)), 2),
    "one constant": (lambda m, x: (m.c(x) * 2.5).relu() - (m.c(x.abs()) * 2.5).relu(), 2),
}


@pytest.mark.parametrize("name", ALIKE)
def test_all_calls_fold_and_the_layer_stays_one(name: str) -> None:
    function, sites = ALIKE[name]
    found = driven(function)
    assert found.applied == sites
    assert len(layers(found)) == 1
    assert sum(p.numel() for p in found.module.parameters()) == 6 * 6 * 9 + 6


UNLIKE: dict[str, Callable[..., Any]] = {
    "a call without norm": lambda m, x: branch(m, x) - branch(m, x.abs()) + m.c(x * x),
    "another norm": lambda m, x: branch(m, x) - m.other(m.c(x.abs())).relu(),
    "another layer of that weight": lambda m, x: branch(m, x) - m.n(m.tied(x.abs())),
    "read by name": lambda m, x: branch(m, x) - branch(m, x.abs()) + m.c.bias.view(-1, 1, 1),
    "another constant": lambda m, x: (m.c(x) * 2.5).relu() - (m.c(x.abs()) * 1.5).relu(),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_one_call_that_would_change_holds_all_of_them(name: str) -> None:
    more = parts(other=nn.BatchNorm2d(6), tied=nn.Conv2d(6, 6, 3, padding=1))
    more["tied"].weight, more["tied"].bias = more["c"].weight, more["c"].bias
    found = run(random_norms(Fn(UNLIKE[name], **more)), X, library("fold")).check()
    assert found.applied == 0
    assert any("other calls" in reason for rule in ("fold_bn", "fold_scale")
               for reason in found.reasons(rule))  # fmt: skip


def test_a_call_whose_value_others_read_holds_all_of_them() -> None:
    def function(m: Any, x: torch.Tensor) -> torch.Tensor:
        h = m.c(x)
        return m.n(h) + h - branch(m, x.abs())

    assert driven(function).sites("fold_bn") == []


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        one, two = (self.head(self.body(image)).mean((2, 3)) for image in (x, z))
        return (one * two).sum(-1)


def test_what_is_saved_is_counted_once_and_one_layer_is_stored(tmp_path: Path) -> None:
    program = "pipeline p { stage fold { fixpoint { fold_bn } } }"
    given = (torch.randn(2, 3, 9, 9), torch.randn(2, 3, 7, 8))
    result = lissom.compile(random_norms(Siamese()), program, inputs=given)
    assert len(result.applied) == 4
    assert (result.before.params, result.after.params) == (3 * 8 * 9 + 24 + 32 + 8, 224 + 36)
    told = sum(event.after.params - event.before.params for event in result.applied)
    assert told == result.after.params - result.before.params
    result.save(tmp_path / "out")
    assert torch.equal(lissom.load(tmp_path / "out")(*given), result.model(*given))
