"""Costs of what no rule can see: counted where they follow from the weights, else said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lissom
from lissom.__main__ import main
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.rewrite.apply.claims import judge_claims
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.journal import Costs, Opaque, Refused
from lissom.rewrite.rules.facts import Facts
from lissom.rewrite.rules.rule import compile_rule
from lissom.rewrite.rules.scope import Scope

NOTHING = "pipeline p { stage s { once drop_dropout } }"


class Read(nn.Module):
    """A layer of which only the first result counts, between two linear ones."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(5, 6), layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(self.first(x))
        return self.last(found[0] if isinstance(found, tuple) else found)


class Twice(nn.Bilinear):
    """A product of a value with itself: no op is declared for it."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x)


RECURRENT: list[tuple[nn.Module, int, int]] = [
    (nn.LSTM(6, 8, num_layers=3), 8, 4 * 8 * (6 + 8 + 4 * 8)),
    (nn.LSTM(6, 8, num_layers=2, bidirectional=True), 16, 2 * 4 * 8 * (6 + 8 + 16 + 8)),
    (nn.LSTM(6, 8, proj_size=4), 4, 4 * 8 * (6 + 4) + 4 * 8),
    (nn.GRU(6, 8, num_layers=2, batch_first=True), 8, 3 * 8 * (6 + 8 + 2 * 8)),
    (nn.GRU(6, 8, bias=False, bidirectional=True), 16, 2 * 3 * 8 * (6 + 8)),
    (nn.RNN(6, 8, num_layers=2), 8, 8 * (6 + 8 + 2 * 8)),
]


def compiled(model: nn.Module, x: Tensor, text: str = NOTHING) -> lissom.Result:
    return lissom.compile(model.eval(), text, inputs=(x,))


@pytest.mark.parametrize(("layer", "width", "each"), RECURRENT)
def test_recurrent_layers_of_any_depth_count(layer: nn.Module, width: int, each: int) -> None:
    """Each matrix of weights multiplies one vector for each of 7 * 4 steps."""
    found = compiled(Read(layer, width), torch.randn(7, 4, 5)).before
    assert found.uncounted == ()
    assert found.macs == 28 * (5 * 6 + each + width * 3)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_a_cell_counts_what_torch_counts(kind: type[Any]) -> None:
    model, x = Read(kind(6, 8), 8).eval(), torch.randn(4, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert 2 * compiled(model, x).before.macs == counter.get_total_flops()


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Read(Twice(6, 6, 4), 4).eval()


def test_what_nobody_counts_is_said() -> None:
    result = compiled(mixed(), torch.randn(2, 5))
    (left,) = result.before.uncounted
    assert (left.site, left.params, left.macs) == ("layer", 6 * 6 * 4 + 4, None)
    assert left.source.startswith("test_uncounted.py:")
    table = result.table()
    assert "at least 84" in table
    assert f"1 op uncounted: {left}, 148 parameters" in table
    assert [c["opaque"][0]["macs"] for c in result.certificate["costs"].values()] == [None, None]


CALIB = 'data calib = sample("train", 4); budget drift(outputs) <= 1%; '


MANY = """
from torch import nn
from tests.test_uncounted import Twice

def build():
    return nn.Sequential(*(Twice(3, 3, 3) for _ in range(7))).eval()

def inputs():
    import torch
    return (torch.ones(2, 3),)
"""


def test_few_of_many_opaque_ops_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MANY)
    main(["dims", "net.py"])
    told = capsys.readouterr().out
    assert told.count("no rule can see") == 6
    assert "no rule can see 2 more ops, 60 parameters; -v lists them" in told


BOUNDS = [
    "budget macs(model) <= 80%; stage s { once drop_dropout }",
    "stage s { once drop_dropout } verify { macs(model) <= 80% }",
    CALIB + "stage s { each low_rank_linear order by macs }",
    CALIB + "stage s { each low_rank_linear until macs(model) <= 1000 }",
]


@pytest.mark.parametrize("steps", BOUNDS)
def test_no_bound_is_put_on_what_is_not_known(steps: str) -> None:
    with pytest.raises(LissomError) as caught:
        compiled(mixed(), torch.randn(2, 5), f"pipeline p {{ {steps} }}")
    (found,) = caught.value.diagnostics
    assert found.code == "R014"
    assert "1 op uncounted: layer (test_uncounted.py:" in found.notes[0]
    assert found.labels[0].span is not None
    assert found.labels[0].span.text == "macs"


@pytest.mark.parametrize("steps", BOUNDS[:2])
def test_what_is_known_is_judged(steps: str) -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout()).eval()
    result = compiled(model, torch.randn(2, 5), f"pipeline p {{ {steps} }}")
    assert result.before.macs == 50


# -- claims of rules -------------------------------------------------------------------------------

HALVED = """
approx rule halved {
  match dim D in channels
  where { sliceable(D); not boundary(D) }
  let { keep = top(l1_over(writers(D)), D // 2) }
  perturb { zero(readers(D), outside = keep) }
  rewrite { D := keep }
  ensure { CLAIM }
}
pipeline p { budget drift(outputs) <= 500%; stage s { once halved } }
"""


class Beside(nn.Module):
    """Two layers that can be cut, beside distances that nobody counts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.held = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(self.first(x)), torch.cdist(x, self.held)


def halved(claim: str) -> lissom.Result:
    torch.manual_seed(0)
    return compiled(Beside(), torch.randn(2, 6), HALVED.replace("CLAIM", claim))


def refused(claim: str) -> dict[str, str]:
    result = halved(claim)
    assert not result.applied
    return {event.code: event.reason for event in result.journal.of(Refused)}


def test_an_op_that_reads_the_same_is_no_matter_to_a_difference() -> None:
    """Half of 8 features go: 4 * 6 + 4 * 3 multiplications a sample less."""
    result = halved("macs(after) < macs(before); macs(before) - macs(after) == 72")
    assert result.before.uncounted
    (event,) = result.applied
    assert [verdict.holds for verdict in event.verdicts[1:]] == [True, True]


@pytest.mark.parametrize("claim", ["macs(after) <= 50% * macs(before)", "macs(after) <= 1000"])
def test_what_an_uncounted_op_may_decide_is_refused(claim: str) -> None:
    """What is counted says yes to both."""
    assert "multiply-accumulates are not known" in refused(claim)["R014"]


def test_a_claim_that_fails_whatever_it_costs_is_broken() -> None:
    assert "does not hold" in refused("macs(after) > macs(before)")["B001"]


LESS = """exact rule r {
  match { h = linear(x)
          y = relu(h) }
  rewrite { y = linear(x) }
  ensure { macs(after) < macs(before) }
}"""


def test_an_op_that_reads_less_may_cost_anything() -> None:
    """The example in two sizes of one op: what it saved is not known, though less is counted."""
    big, small = (Opaque("a", "", "", 4, None, (size,)) for size in ("[2, 8]", "[2, 4]"))
    (claim,) = compile_rule(parse(LESS).all(t.Rule)[0], {}).claims
    scope = Scope({}, {}, QUESTIONS, None)
    for other, decided in ((big, True), (small, False)):
        scope.facts = Facts(
            before=Costs(8, 32, 100, 2, (big,)), after=Costs(4, 16, 60, 2, (other,))
        )
        if decided:
            (found,) = judge_claims(scope, [claim], [0])
            assert found.holds
            continue
        with pytest.raises(LissomError, match="R014"):
            judge_claims(scope, [claim], [0])


MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.both = nn.Linear(5, 6), nn.Bilinear(6, 6, 4)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = self.drop(self.first(x))
        return self.both(x, x)

def build():
    torch.manual_seed(0)
    return Net().eval()

def inputs():
    return (torch.ones(2, 5),)
"""
HIDDEN = "no rule can see both (net.py:13), 148 parameters: no op is declared for"


def test_commands_name_the_parameters_that_no_rule_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL)
    Path("p.lissom").write_text(NOTHING)

    def told(*command: str) -> str:
        main(list(command))
        return capsys.readouterr().out

    assert HIDDEN in told("dims", "net.py")
    assert HIDDEN in told("why", "net.py", "fold_bn")
    planned = told("plan", "net.py", "p.lissom", "-o", "plan.json")
    assert HIDDEN in planned
    assert "184 parameters, at least 60 MACs" in planned
    assert "at least 60 -> at least 60 MACs (+0)" in planned
    assert "1 op uncounted: both (net.py:13), 148 parameters" in planned
    assert "at least 60" in told("apply", "net.py", "--plan", "plan.json", "-o", "out")
    found = json.loads(told("dims", "net.py", "--format", "json"))
    assert found["opaque"][0]["params"] == 148


def test_the_parameters_of_a_scripted_part_count() -> None:
    model = nn.Sequential(nn.Linear(5, 5), torch.jit.script(nn.Linear(5, 7))).eval()
    result = lissom.compile(model, NOTHING, inputs=(torch.randn(2, 5),))
    assert result.before.params == sum(p.numel() for p in model.parameters()) == 30 + 42
