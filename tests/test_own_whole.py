"""Ops and a layer of a user's own model file, as docs/ops.md declares them: captured, folded
around, cut through, and proved by `lissom test`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lissom
from lissom.cli import cli
from lissom.model_file import load_module

MODEL = '''
import torch
from torch import nn


def swell(x, power=1.0):
    """Element by element: swell(swell(x, p), q) is swell(x, p + q)."""
    return x * torch.exp(torch.tensor(power, dtype=x.dtype))


def blend(x, weight):
    """Mixes the positions of all tokens with weights, each channel by itself."""
    return weight @ x


def gain(x, factor, exponent=1.0):
    return x * factor**exponent


class Gain(nn.Module):
    def __init__(self, width, exponent):
        super().__init__()
        self.factor = nn.Parameter(torch.rand(width) + 0.5)
        self.exponent = exponent

    def forward(self, x):
        return gain(x, self.factor, self.exponent)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.gain, self.outer = nn.Linear(6, 8), Gain(8, 1.0), nn.Linear(8, 3)
        self.mixing = nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        h = self.gain(self.inner(x))
        h = swell(swell(h, 0.5), 0.25)
        return self.outer(blend(h, self.mixing))


def build():
    return Tokens().eval()


def inputs():
    return (torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)),)


ops = {"mylab.swell": swell, "mylab.blend": blend, "mylab.gain": gain, "mylab.Gain": Gain}
'''

OPS = """
op swell(x: f[...]) -> f[...] {
  attr power: float = 1.0
  trait elementwise, linear_in_x
  meaning mylab.swell(x, power)
}
op blend(x: f[..., T, C]) -> f[..., U, C] {
  param weight: [U, T]
  trait linear_in_x, linear_in_weight
  cost macs = numel(x) * U
  meaning mylab.blend(x, weight)
}
op gain(x: f[..., C]) -> f[..., C] {
  param factor: [C]
  attr exponent: float = 1.0
  trait linear_in_x
  mixes none
  meaning mylab.gain(x, factor, exponent)
  spelling mylab.Gain(x, factor, exponent)
}
"""

RULES = """
exact rule one_swell {
  match { h = swell(x, power = p)
          y = swell(h, power = q) }
  rewrite { y = swell(x, power = p + q) }
}

exact rule gain_into_linear {
  match { h = linear(x) as l
          y = gain(h, exponent = 1.0) as g }
  where { owned(l.weight, l.bias, g.factor)  else "shared" }
  rewrite { y = l(x, weight = scale(l.weight, g.factor), bias = (l.bias or 0) * g.factor) from l }
}

exact rule one_blend {
  match { h = blend(x) as a
          y = blend(h) as b }
  rewrite { y = blend(x, weight = b.weight @ a.weight) }
}
"""

PIPELINES = """
pipeline folds {
  stage s {
    once gain_into_linear
    once one_swell
  }
}
pipeline cuts {
  stage s { once prune_l1(ratio = 50%) }
  budget drift(outputs) <= 100%
}
pipeline both {
  stage s {
    once gain_into_linear
    once one_swell
  }
  stage t { once prune_l1(ratio = 50%) }
  budget drift(outputs) <= 100%
}
"""

Module = Any


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Module:
    path = tmp_path_factory.mktemp("own") / "model.py"
    path.write_text(MODEL)
    return load_module(str(path))


def compiled(own: Module, pipeline: str) -> lissom.Result:
    text = OPS + RULES + PIPELINES
    model, inputs = own.build(), own.inputs()
    return lissom.compile(model, text, inputs=inputs, pipeline=pipeline, ops=own.ops)


def called(model: nn.Module, own: Module) -> list[str]:
    """The own functions and layers that a graph calls, in order."""
    graph: Any = model.graph
    layers = dict(model.named_modules())
    found = [
        type(layers[node.target]) if node.op == "call_module" else node.target
        for node in graph.nodes
    ]
    return [kind.__name__ for kind in found if kind in own.ops.values()]


def test_each_is_one_node(own: Module) -> None:
    text = OPS + "pipeline p { stage s { once drop_dropout } }"
    result = lissom.compile(own.build(), text, inputs=own.inputs(), ops=own.ops)
    assert called(result.model, own) == ["Gain", "swell", "swell", "blend"]
    (x,) = own.inputs()
    assert torch.equal(result.model(x), own.build()(x))


def test_they_are_folded_into_what_stands_around(own: Module) -> None:
    result = compiled(own, "folds")
    assert [event.rule for event in result.applied] == ["gain_into_linear", "one_swell"]
    assert called(result.model, own) == ["swell", "blend"]
    (x,) = own.inputs()
    torch.testing.assert_close(result.model(x), own.build()(x))


@pytest.mark.parametrize("pipeline", ["cuts", "both"])
def test_channels_are_cut_through_all_of_them(own: Module, pipeline: str) -> None:
    result = compiled(own, pipeline)
    assert "inner" in [event.site for event in result.applied]
    shapes = [tuple(p.shape) for p in result.model.parameters() if p.ndim > 1]
    assert sorted(shapes) == [(3, 4), (4, 5), (4, 6)]  # tokens are no channels: (4, 5) is whole
    assert called(result.model, own)[-1] == "blend"
    (x,) = own.inputs()
    assert result.model(x).shape == own.build()(x).shape


def tried(folder: Path, rules: str, models: int) -> tuple[int, list[str]]:
    """The exit code and the rows of `lissom test`."""
    (folder / "model.py").write_text(MODEL)
    (folder / "rules.lissom").write_text(OPS + rules)
    files = [str(folder / "rules.lissom"), "--python", str(folder / "model.py")]
    found = CliRunner().invoke(cli, ["test", *files, "--models", str(models), "--jobs", "1"])
    return found.exit_code, found.output.splitlines()


def test_rules_about_them_are_proved(tmp_path: Path) -> None:
    code, rows = tried(tmp_path, RULES, 24)
    verdicts = {row.split()[0]: row.split()[-1] for row in rows[1:4]}
    names = ("one_swell", "gain_into_linear", "one_blend")
    assert (code, verdicts) == (0, dict.fromkeys(names, "verified")), "\n".join(rows)


WRONG = {
    "one_swell": ("p + q", "p - q"),
    "gain_into_linear": ("* g.factor) from l", ") from l"),
    "one_blend": ("b.weight @ a.weight", "b.weight @ a.weight * 2"),
}


def test_wrong_rules_about_them_are_refuted(tmp_path: Path) -> None:
    rules = RULES
    for right, wrong in WRONG.values():
        rules = rules.replace(right, wrong)
    code, rows = tried(tmp_path, rules, 20)
    assert code == 1
    for rule in WRONG:
        assert any(f"`{rule}` fails its test: UNSOUND" in row for row in rows)
