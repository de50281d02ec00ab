"""The funnel of a rule over dimensions: classes are the candidates, the last levels are the cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lissom.grammar.diagnostics import LissomError
from lissom.grammar.library.program import program_of
from lissom.grammar.tree.tree import Rule as Source
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.explain.funnel import Funnel, funnel
from lissom.rewrite.pipeline.compile import Options, working_state
from lissom.rewrite.rules.rule import compile_rule
from lissom.rewrite.rules.state import State


class Net(nn.Module):
    """Wide, small, summed over, and seen from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.small = nn.Linear(3, 16), nn.Linear(16, 4)
        self.sums, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.small(torch.relu(self.wide(x))))
        return self.head(torch.cumsum(self.sums(x), 1))


RULE = """
approx rule thin(bound: int = 1) {
  match dim D in channels
  where { D >= 4  else "only {D}" }
  let {
    N = max(D - 4, 0)
    keep = top(l1_over(writers(D)), N)
  }
  perturb { zero(readers(D), outside = keep) }
  rewrite { D := keep }
  ensure { params(after) < 90% * params(before) }
}
"""


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    captured = capture(Net().eval(), (torch.rand(2, 3),))
    return working_state(captured, program_of(RULE), None, Options(functions=FUNCTIONS))


def ask(state: State, text: str = RULE, at: str | None = None) -> Funnel:
    (source,) = program_of(text).file.all(Source)
    return funnel(state, compile_rule(source, {}), at)


def levels(found: Funnel) -> dict[str, tuple[int, int]]:
    return {level.kind: (level.came, level.passed) for level in found.levels}


def test_every_class_is_counted_at_what_it_fails(state: State) -> None:
    found = ask(state)
    assert (found.anchor, found.candidates) == ("any dimension", 4)
    assert [level.kind for level in found.levels] == ["guard", "cut", "keep", "plan"]
    assert levels(found) == {"guard": (4, 3), "cut": (3, 2), "keep": (2, 1), "plan": (1, 1)}
    assert found.sites == ("wide",)
    reasons = {near.site: near.reason for near in found.nearest}
    assert reasons == {
        "small": "the rule keeps nothing",
        "sums": "it cannot be cut: cumsum: cumsum mixes it",
        "head": "only 2",
    }
    assert [near.site for near in found.nearest] == ["small", "sums", "head"]


def test_a_miss_leads_to_the_line_of_the_model(state: State) -> None:
    lines = {near.site: near.source for near in ask(state).nearest}
    first = Net.forward.__code__.co_firstlineno
    assert lines["sums"] == f"test_funnel_dims.py:{first + 2}"
    assert lines["small"] == f"test_funnel_dims.py:{first + 1}"


def test_a_rule_that_keeps_everything(state: State) -> None:
    found = ask(state, RULE.replace("max(D - 4, 0)", "D"))
    assert levels(found)["keep"] == (2, 0)
    assert {near.reason for near in found.nearest} >= {"the rule keeps everything"}


def test_a_promise_that_does_not_hold_is_the_last_level(state: State) -> None:
    found = ask(state, RULE.replace("90%", "10%"))
    assert levels(found)["plan"] == (1, 0)
    assert found.nearest[0].code == "B001"
    assert found.levels[-1].text == "params(after) < 10% * params(before)"


def test_guards_come_in_the_order_of_the_text(state: State) -> None:
    later = "perturb {"
    found = ask(state, RULE.replace(later, f'where {{ N < 12  else "too many" }}\n  {later}'))
    guards = [(level.text, level.passed) for level in found.levels if level.kind == "guard"]
    assert guards == [("D >= 4", 3), ("N < 12", 2)]
    assert found.sites == ()


def test_a_place_limits_the_classes(state: State) -> None:
    assert ask(state, at="wide").candidates == 1
    assert ask(state, at="small").candidates == 2
    with pytest.raises(LissomError, match="U008"):
        ask(state, at="nothing")


def test_asking_cuts_nothing(state: State) -> None:
    before = {name: value.clone() for name, value in state.module.state_dict().items()}
    module = state.module
    ask(state)
    assert state.module is module
    assert state.journal.events == []
    after = state.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_model_without_dimensions(state: State) -> None:
    captured = capture(nn.ReLU().eval(), (torch.rand(2, 3),))
    empty = working_state(captured, program_of(RULE), None, Options(functions=FUNCTIONS))
    found = ask(empty)
    assert (found.candidates, found.sites, found.sought) == (0, (), ())
