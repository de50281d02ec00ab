"""Ops that a user declares, in models that run them: captured whole, matched, cut, never stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.rewrite.journal import Refused

OP = """
op bent(x: f[..., C]) -> f[..., C] {
  param slope: [C]
  attr power: float = 1.0
  mixes none
  meaning own.bent(x, slope, power)
  SPELLING
}
exact rule into_linear {
  match { h = linear(x) as l
          y = bent(h, power = 0.0) as b }
  where { owned(l.weight, l.bias, b.slope)  else "shared" }
  rewrite { y = l(x, weight = scale(l.weight, b.slope), bias = (l.bias or 0) * b.slope) from l }
}
pipeline cuts { stage s { once prune_l1(ratio = 50%) } budget drift(outputs) <= 100% }
pipeline folds { stage s { once into_linear } }
"""


def bent(x: Tensor, slope: Tensor, power: float = 1.0) -> Tensor:
    return x * slope * (1 + x.abs()) ** power


class Bent(nn.Module):
    def __init__(self, width: int, power: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.rand(width) + 0.5)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return bent(x, self.slope, self.power)


LAYER = "spelling own.Bent(x, slope, power)"
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def compiled(pipeline: str, spelling: str, power: float, ops: dict[str, Any]) -> lissom.Result:
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), Bent(8, power), nn.ReLU(), nn.Linear(8, 3)
    text = OP.replace("SPELLING", spelling)
    model = nn.Sequential(*layers).eval()
    return lissom.compile(model, text, inputs=(X,), pipeline=pipeline, ops=ops)


WAYS = [("", {"own.bent": bent}), (LAYER, {"own.bent": bent, "own.Bent": Bent})]


@pytest.mark.parametrize(("spelling", "ops"), WAYS, ids=["function", "layer"])
def test_channels_are_cut_through_an_own_op(spelling: str, ops: dict[str, Any]) -> None:
    result = compiled("cuts", spelling, 0.5, ops)
    assert [event.site for event in result.applied] == ["0"]
    assert {tuple(p.shape) for p in result.model.parameters()} == {(4, 6), (4,), (3, 4), (3,)}
    reads = [n.args[:1] for n in result.model.graph.nodes if n.target is bent]
    assert len(reads) == 1
    assert result.model(X).shape == (4, 3)


@pytest.mark.parametrize(("spelling", "ops"), WAYS, ids=["function", "layer"])
def test_a_rule_matches_an_own_op(spelling: str, ops: dict[str, Any], tmp_path: Path) -> None:
    result = compiled("folds", spelling, 0.0, ops)
    assert [event.rule for event in result.applied] == ["into_linear"]
    result.save(tmp_path / "out")
    assert torch.equal(lissom.load(tmp_path / "out")(X), result.model(X))


def test_code_that_an_artifact_cannot_hold_is_named(tmp_path: Path) -> None:
    result = compiled("folds", "", 1.0, {"own.bent": bent})
    assert result.applied == []
    assert any("power" in event.reason for event in result.journal.of(Refused))
    with pytest.raises(lissom.LissomError, match=r"A013.*bent") as caught:
        result.save(tmp_path / "out")
    assert "torch.save(result.model, FILE)" in caught.value.diagnostics[0].helps[-1]
    torch.save(result.model, tmp_path / "whole.pt")
    kept = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(kept(X), result.model(X))


def test_the_name_of_an_own_function_is_put_back() -> None:
    before = globals()["bent"]
    compiled("folds", "", 1.0, {"own.bent": bent})
    assert globals()["bent"] is before
