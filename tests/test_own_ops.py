"""Ops that a user declares, in models that run them: captured whole, matched, cut, never stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.text.parse import parse
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.channels.analyse import analyse
from lissom.rewrite.channels.listing import listing
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.graph.own import declared
from lissom.rewrite.journal import Refused
from lissom.rewrite.ops.vocabulary import Vocabulary

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


# -- traits say what a table of names said ---------------------------------------------------------

LOUDEST = """
op loudest(x: f[...]) -> f {
  attr dim: ints = none
  attr keepdim: bool = false
  trait TRAITS
  meaning own.loudest(x, dim, keepdim)
}
pipeline cuts { stage s { once prune_l1(ratio = 50%) } budget drift(outputs) <= 1000% }
"""


def loudest(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    return x.abs().amax(dim, keepdim)


class Levelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.outer(h / (1 + loudest(h, -1, True)))


@pytest.mark.parametrize("traits", ["reduction, statistics", "reduction"])
def test_an_own_reduction_is_taken_anew_where_it_says_so(traits: str) -> None:
    torch.manual_seed(0)
    text = LOUDEST.replace("TRAITS", traits)
    result = lissom.compile(Levelled().eval(), text, inputs=(X,), ops={"own.loudest": loudest})
    reasons = [event.reason for event in result.journal.of(Refused) if event.site == "inner"]
    if "statistics" in traits:
        assert [event.site for event in result.applied] == ["inner"]
    else:
        assert reasons == ["loudest: loudest reduces over it"]


DENSE = """
op dense(x: f[..., I]) -> f[..., O] {
  param weight: [O, I]
  trait linear_in_x, linear_in_weight
  meaning own.dense(x, weight)
  spelling own.Dense(x, weight)
}
extern fn moments(n: node) -> any pure
extern fn width(m: any) -> number pure
approx rule halved {
  match { y = OP(x) as l }
  let { m = moments(l) }
  where { width(m) == 6 }
  rewrite { y = l(x, weight = l.weight * 0.5) from l }
  ensure { error(y) <= 100% on calib }
}
pipeline p {
  data calib = sample("train", 8)
  budget drift(outputs) <= 100%
  stage s { once halved }
}
"""


def dense(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.t()


class Dense(nn.Module):
    def __init__(self, inputs: int, results: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(results, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return dense(x, self.weight)


OPS = {"own.dense": dense, "own.Dense": Dense}


def halved(model: nn.Module, x: Tensor, op: str) -> lissom.Result:
    return lissom.compile(
        model.eval(),
        DENSE.replace("OP", op),
        inputs=(x,),
        ops=OPS,
        data=lambda split: [(x, 0)],
        functions={"width": len},
    )


def test_moments_of_an_own_linear_layer_are_those_of_its_input() -> None:
    result = halved(nn.Sequential(Dense(6, 3)), X, "dense")
    assert [event.site for event in result.applied] == ["0"]


def test_moments_of_what_is_no_such_layer_are_refused_in_words() -> None:
    """A transposed convolution has the settings of a window, and other patches."""
    x = torch.randn(2, 3, 4, 4)
    result = halved(nn.Sequential(nn.ConvTranspose2d(3, 2, 2)), x, "conv_transpose2d")
    (refused,) = result.journal.of(Refused)
    assert refused.code == "R001"
    assert "neither a linear layer nor a convolution of images" in refused.reason


def test_an_own_linear_layer_counts_among_the_weights() -> None:
    model = nn.Sequential(Dense(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    ops = Vocabulary.from_files([parse(DENSE.replace("OP", "dense"), "own.lissom")], OPS)
    with declared(ops):
        module = capture(model, (X,), prove=False).module
    assert listing(analyse(GraphView(module, ops))).weights == 6 * 8 + 8 * 3 + 3


class Levelling(Dense):
    def forward(self, x: Tensor) -> Tensor:
        return dense(x, self.weight / self.weight.norm())


def test_a_computed_weight_of_an_own_layer_is_stored_as_one() -> None:
    model = Levelling(6, 3).eval()
    ops = Vocabulary.from_files([parse(DENSE.replace("OP", "dense"), "own.lissom")], OPS)
    with declared(ops):
        module = capture(model, (X,)).module
    assert list(dict(module.named_parameters())) == ["folded_weight"]
    assert GraphView(module, ops).calls_of("dense")


APART = """
import torch

def bent(x, slope, power=1.0):
    return x * slope * (1 + x.abs()) ** power

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x):
        return torch.relu(bent(x, self.slope))
"""


def test_a_function_of_code_that_python_knows_no_module_of_is_kept_whole() -> None:
    """A file that was read and run, a cell of a notebook that was deleted."""
    names: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile(APART, "apart.py", "exec"), names)
    own = {"own.bent": names["bent"]}
    ops = Vocabulary.from_files([parse(OP.replace("SPELLING", ""), "own.lissom")], own)
    with declared(ops):
        module = capture(names["Model"]().eval(), (X,)).module
    assert [n.target for n in GraphView(module, ops).calls_of("bent")] == [names["bent"]]
    assert names["bent"] is own["own.bent"]
