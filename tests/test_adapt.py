"""Norm statistics taken anew: what each batch norm keeps is what it sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.journal import Applied, Refused

from .cutting import randomised
from .support import library

RULES = library("prune", "adapt")
CUT = "stage cut { once prune_l1(ratio = 50%) }"
ADAPT = "stage adapt { once adapt_norm }"


def net() -> nn.Module:
    return randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)),
        )
    )


def data(split: str) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    images = 2 + torch.randn(40, 3, 9, 9, generator=generator, dtype=torch.float64)
    return list(zip(images.split(16), torch.zeros(40).split(16), strict=True))


def adapted(*stages: str, **options: Any) -> Any:
    given = 'data calib = sample("train", all); budget drift(outputs) <= 1000000%;'
    text = f"{RULES} pipeline p {{ {given} {' '.join(stages)} }}"
    inputs = (data("train")[0][0][:2],)
    return lissom.compile(net(), text, inputs=inputs, **{"data": data, **options})


def test_every_norm_keeps_what_it_sees_in_the_result() -> None:
    """Also those behind others that were adapted: they are taken in the order of the graph."""
    model = adapted(CUT, ADAPT).model
    seen: dict[str, Tensor] = {}
    norms = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    assert len(norms) == 3
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    with torch.no_grad():
        model(torch.cat([x for x, _ in data("train")]))
    for name, norm in norms.items():
        values = seen[name].movedim(1, 0).flatten(1)
        torch.testing.assert_close(norm.running_mean, values.mean(1))
        torch.testing.assert_close(norm.running_var, values.var(1, correction=0))


def test_weights_stay_and_the_rest_of_the_model_too() -> None:
    cut, both = adapted(CUT), adapted(CUT, ADAPT)
    old, new = cut.model.state_dict(), both.model.state_dict()
    assert len([event for event in both.journal.of(Applied) if event.stage == "adapt"]) == 3
    kept = {name for name in old if name in new and torch.equal(old[name], new[name])}
    assert {"0.weight", "3.weight", "9.weight", "9.bias"} <= kept


def test_statistics_that_fit_move_nothing() -> None:
    once, twice = adapted(ADAPT), adapted(ADAPT, "stage again { once adapt_norm }")
    x = data("train")[0][0]
    torch.testing.assert_close(once.model(x), twice.model(x))


def test_without_data_nothing_is_adapted() -> None:
    result = adapted(ADAPT, data=None)
    assert result.applied == []
    assert {event.reason for event in result.journal.of(Refused)} == {
        "no calibration data reached 1", "no calibration data reached 4",
        "no calibration data reached 8",
    }  # fmt: skip


def test_a_norm_that_runs_twice_is_left() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(self.norm(x)))

    text = f'{RULES} pipeline p {{ data calib = sample("train", all); {ADAPT} }}'
    inputs = (data("train")[0][0],)
    result = lissom.compile(randomised(Twice()), text, inputs=inputs, data=data)
    assert result.applied == []
    assert {event.reason for event in result.journal.of(Refused)} == {"norm runs 2 times"}
