"""The funnel: every candidate is counted once, at the condition that it fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError
from lissom.grammar.library.program import program_of
from lissom.grammar.tree.tree import Rule as Source
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.explain.funnel import Funnel, funnel, opaque_at
from lissom.rewrite.pipeline.compile import Options, working_state
from lissom.rewrite.rules.rule import compile_rule
from lissom.rewrite.rules.state import State


class Net(nn.Module):
    """Four convolutions: plain, grouped, small, and one whose value is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.small = nn.Conv2d(8, 2, 3, padding=1)
        self.twice = nn.Conv2d(2, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.plain(x))
        x = torch.relu(self.grouped(x))
        x = torch.relu(self.small(x))
        y = self.twice(x)
        return torch.relu(y) + y


RULE = """
approx rule thin(bound: frac = 50%) {
  match {
    h = conv2d(x, groups = 1) as c
    y = relu(h)
    c.weight : [O, I, K, L]
  }
  where {
    O >= 4   else "only {O} outputs"
    I >= 99  else "only {I} inputs"
  }
  perturb { c.weight := c.weight }
  rewrite { y = relu(x) }
  ensure { error(y) <= bound }
}
"""


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    captured = capture(Net().eval(), (torch.rand(2, 4, 6, 6),))
    return working_state(captured, program_of(RULE), None, Options(functions=FUNCTIONS))


def ask(state: State, text: str = RULE, at: str | None = None) -> Funnel:
    (source,) = program_of(text).file.all(Source)
    return funnel(state, compile_rule(source, {}), at)


def passed(found: Funnel) -> dict[str, int]:
    return {level.text: level.passed for level in found.levels}


def test_candidates_are_lost_one_condition_after_another(state: State) -> None:
    found = ask(state)
    counts = passed(found)
    assert found.candidates == 4
    assert counts["y = relu(h)"] == 4
    assert counts["nothing else reads h"] == 3
    assert counts["groups = 1"] == 2
    assert counts["O >= 4"] == 1
    assert counts["I >= 99"] == 0
    assert found.sites == ()


def test_levels_follow_on_each_other(state: State) -> None:
    levels = ask(state).levels
    assert levels[0].came == 4
    assert [level.came for level in levels[1:]] == [level.passed for level in levels[:-1]]


def test_the_nearest_miss_comes_first_and_points_at_its_guard(state: State) -> None:
    near = ask(state).nearest
    assert [one.site for one in near] == ["plain", "small", "grouped"]
    shown = str(near[0].diagnostic())
    assert "plain: only 4 inputs" in shown
    assert "^^^^^^^ here it ends" in shown


def test_sites_are_those_that_would_be_rewritten(state: State) -> None:
    text = "exact rule join {\n match { y = conv2d(x) as c }\n rewrite { y = c(x) from c }\n}"
    found = ask(state, text)
    assert found.sites == ("plain", "grouped", "small", "twice")
    assert found.nearest == ()


def test_a_broken_budget_is_the_last_condition(state: State) -> None:
    text = """approx rule cut {
      match { y = conv2d(x, groups = 1) as c }
      perturb { c.weight := 0 * c.weight }
      rewrite { y = c(x, weight = 0 * c.weight) from c }
      ensure { error(y) <= 1% }
    }"""
    last = ask(state, text).levels[-1]
    assert (last.kind, last.passed) == ("plan", 0)
    assert last.came == 3


def test_asking_changes_nothing(state: State) -> None:
    nodes = [node.name for node in state.module.graph.nodes]
    before = {name: value.clone() for name, value in state.module.state_dict().items()}
    ask(state, "exact rule join {\n match { y = conv2d(x) as c }\n rewrite { y = c(x) from c }\n}")
    assert [node.name for node in state.module.graph.nodes] == nodes
    after = state.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert state.journal.events == []


def test_a_place_limits_the_candidates(state: State) -> None:
    found = ask(state, at="small")
    assert found.candidates < 4
    assert "small" in {near.site for near in found.nearest}
    assert ask(state, at="*").candidates == 4


def test_a_place_that_is_not_there(state: State) -> None:
    with pytest.raises(LissomError, match="did you mean `small`") as caught:
        ask(state, at="smal")
    assert caught.value.diagnostics[0].code == "U008"


def test_what_no_rule_can_see_is_told() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.special.bessel_j0(x))

    captured = capture(Odd().eval(), (torch.rand(2, 3),))
    program = program_of(RULE)
    odd = working_state(captured, program, None, Options(functions=FUNCTIONS))
    ((name, reason),) = opaque_at(odd, "*bessel*")
    assert "bessel" in name
    assert reason


class Odd(nn.Module):
    """No plain convolution: one pads by reflection, one has a computed weight, one is no op."""

    def __init__(self) -> None:
        super().__init__()
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.computed = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.reflected(x))
        x = torch.conv2d(x, self.computed.weight * x.mean())
        rows = x.shape[0]
        return torch.special.bessel_j0(x.relu()).reshape(rows, -1)


@pytest.fixture(scope="module")
def odd() -> State:
    captured = capture(Odd().eval(), (torch.rand(2, 4, 6, 6),))
    return working_state(captured, program_of(RULE), None, Options(functions=FUNCTIONS))


def test_without_a_candidate_the_ops_are_counted(odd: State) -> None:
    found = ask(odd)
    assert found.candidates == 0
    assert [(line.ops, line.count) for line in found.sought] == [(("conv2d",), 0), (("relu",), 2)]


def test_without_a_candidate_opaque_nodes_that_may_be_one_are_told(odd: State) -> None:
    found = ask(odd)
    convolution, relu = found.sought
    (reflected, computed) = convolution.hidden
    assert reflected.site == "reflected"
    assert reflected.source.startswith("test_funnel.py:")
    assert reflected.reason == "not `conv2d`: padding_mode is 'reflect', the op has 'zeros'"
    assert "its `weight` is computed by `mul`" in computed.reason
    assert relu.hidden == ()


def test_without_a_candidate_what_is_no_op_at_all_is_told(odd: State) -> None:
    (bessel,) = ask(odd).unknown
    assert bessel.reason.startswith("no op is declared for ")
    assert "bessel_j0" in bessel.reason


def test_alternatives_are_one_line(odd: State) -> None:
    text = """exact rule join {
      match { y = (conv1d | conv2d)(x) as c; z = (conv2d | conv1d)(y) as d }
      rewrite { z = d(x) from d }
    }"""
    (line,) = ask(odd, text).sought
    assert line.ops == ("conv1d", "conv2d")
    assert len(line.hidden) == 2


def test_with_candidates_nothing_is_sought(state: State) -> None:
    found = ask(state)
    assert (found.sought, found.unknown) == ((), ())
