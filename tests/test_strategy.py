"""Strategies: what is tried, how often, and how they end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.journal import Applied, Refused
from lissom.rewrite.pipeline.orders import ORDERS
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.rules.rule import CompiledRule

from .support import Driven, Fn, library, rules_of, run, state_of, the_rule

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))

GROW = "exact rule grow { MORE match { y = relu(x) } rewrite { h = relu(x)\n y = relu(h) } }"
THERE = "exact rule there { MORE match { y = relu(x) } rewrite { y = clamp(x, min = 0) } }"
BACK = "exact rule back { MORE match { y = clamp(x, min = 0) } rewrite { y = relu(x) } }"
RECURSIVE = "recursive decreasing ops(model)\n"


def chain(length: int, layer: type[nn.Module] = nn.Identity) -> nn.Sequential:
    return nn.Sequential(*(layer() for _ in range(length)), nn.Tanh()).eval()


def runner(model: nn.Module, x: torch.Tensor = X) -> Runner:
    return Runner(state_of(capture(model, (x,)).module, (x,)), "stage")


def stepped(model: nn.Module, rules: Sequence[CompiledRule], limit: int | None = None) -> Driven:
    work = runner(model)
    return Driven(model, (X,), work.state, work.fixpoint(rules, limit))


# -- termination -----------------------------------------------------------------------------------


def test_a_growing_rule_is_stopped_by_its_ancestry() -> None:
    """I23, I24."""
    driven = run(chain(1, nn.ReLU), X, GROW.replace("MORE", "")).check()
    assert driven.applied == 1
    assert driven.ops() == ["relu", "relu", "tanh"]
    assert {refused.code for refused in driven.refusals()} == {"L001"}


def test_inverse_rules_end_where_they_began() -> None:
    """I25."""
    driven = run(chain(1, nn.ReLU), X, (THERE + "\n" + BACK).replace("MORE", "")).check()
    assert driven.applied == 2
    assert driven.ops() == ["relu", "tanh"]


def test_inverse_rules_that_claim_to_decrease_are_reported_as_a_loop() -> None:
    """I25."""
    with pytest.raises(LissomError) as caught:
        run(chain(1, nn.ReLU), X, (THERE + "\n" + BACK).replace("MORE", RECURSIVE))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "L004"
    assert "there" in diagnostic.notes[0]
    assert "back" in diagnostic.notes[0]


def test_a_limit_ends_a_fixpoint_quietly() -> None:
    rules = rules_of((THERE + "\n" + BACK).replace("MORE", RECURSIVE))
    assert stepped(chain(1, nn.ReLU), rules, limit=7).check().applied == 7


def test_the_cap_counts_one_fixpoint_not_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lissom.rewrite.pipeline.strategy.CAP_LEAST", 6)
    monkeypatch.setattr("lissom.rewrite.pipeline.strategy.CAP_PER_NODE", 0)
    work = runner(chain(5))
    work.applied = 1000
    assert work.fixpoint([the_rule(library("tidy"), "drop_identity")]) == 5


def test_a_rule_that_shrinks_may_go_on() -> None:
    """Four pointwise convolutions become one, by three applications of one rule."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(4))).eval()
    driven = run(model, X, library("merge")).check()
    assert driven.applied == 3
    assert driven.ops() == ["conv2d"]
    (last,) = (n for n in driven.module.graph.nodes if n.op == "call_module")
    assert len(last.meta["origins"]) == 4


def test_a_recursive_rule_that_decreases_ends() -> None:
    text = """exact rule halve {
      recursive decreasing k
      match { y = mul(x, k) }
      where { constant(k)\n k > 2 else "done" }
      rewrite { h = mul(x, 2)\n y = mul(h, k / 2) } }"""
    driven = run(Fn(lambda m, x: x * 8), X, text, how="fixpoint")
    driven.check()
    assert driven.applied == 2
    assert driven.ops() == ["mul", "mul", "mul"]


# -- once, fixpoint, each --------------------------------------------------------------------------


def test_once_tries_what_was_there_at_entry() -> None:
    driven = run(chain(3, nn.ReLU), X, GROW.replace("MORE", RECURSIVE), how="once").check()
    assert driven.applied == 3
    assert len(driven.ops()) == 7


def test_once_in_graph_order() -> None:
    assert run(chain(3), X, library("tidy"), how="once").sites() == ["0", "1", "2"]


def test_priority_then_order_in_the_file() -> None:
    one = "exact rule one { match { y = relu(x) } rewrite { y = clamp(x, min = 0) } }"
    result = "rewrite { y = neg(clamp(neg(x), max = 0)) }"
    two = f"exact rule two {{ PRIORITY match {{ y = relu(x) }} {result} }}"
    both = f"{one}\n{two}"
    assert run(chain(1, nn.ReLU), X, both.replace("PRIORITY", "")).sites("one") == ["0"]
    assert run(chain(1, nn.ReLU), X, both.replace("PRIORITY", "priority 1\n")).sites("two") == ["0"]
    assert run(chain(1, nn.ReLU), X, both.replace("PRIORITY", "priority -1\n")).sites("one") == [
        "0"
    ]


def test_a_rewrite_far_from_the_anchor_wakes_its_neighbours() -> None:
    """The site of `far` ends three ops behind its anchor; `wake` matches only what follows it."""
    text = """
    exact rule far { match { a = sigmoid(x)\n b = neg(a)\n y = neg(b) } rewrite { y = sigmoid(x) } }
    exact rule wake {
      match { s = sigmoid(x)\n u = tanh(s)\n y = relu(u) }
      rewrite { y = tanh(sigmoid(x)) }
    }
    """
    model = Fn(lambda m, x: torch.neg(torch.neg(x.sigmoid())).tanh().relu())
    driven = run(model, X, text).check()
    assert driven.ops() == ["sigmoid", "tanh"]


THIN = """approx rule thin {
      match { y = linear(x) as l\n l.weight : [O, I] }
      let { (u, s, v) = svd(l.weight) }
      where { I + O < I * O }
      perturb { l.weight := (u[:, :1] * s[:1]) @ v[:1] }
      rewrite {
        h = linear(x, weight = v[:1], bias = none) from l
        y = linear(h, weight = u[:, :1] * s[:1], bias = l.bias) from l
      }
    }"""


def three_layers() -> Runner:
    torch.manual_seed(0)
    return runner(nn.Sequential(nn.Linear(6, 40), nn.Linear(40, 60), nn.Linear(60, 6)).eval())


by_saving = ORDERS["saving"]


def left(work: Runner, code: str) -> list[str]:
    return [event.site for event in work.state.journal.of(Refused) if event.code == code]


def test_each_applies_the_best_first_and_stops() -> None:
    work, done = three_layers(), iter([False, False, True])
    assert work.each(the_rule(THIN), by_saving, lambda: next(done)) == 2
    assert [event.site for event in work.state.journal.of(Applied)] == ["1", "2"]
    assert left(work, "B003") == ["0"]


def test_each_goes_on_behind_a_site_that_breaks_a_budget() -> None:
    work, broken = three_layers(), iter(["too much", None, "too much"])
    assert work.each(the_rule(THIN), by_saving, lambda: False, lambda: next(broken)) == 1
    assert [event.site for event in work.state.journal.of(Applied)] == ["2"]
    assert left(work, "B002") == ["1", "0"]
    assert left(work, "B003") == []


# -- cost ------------------------------------------------------------------------------------------


def tried(length: int, rules: str, layer: type[nn.Module]) -> int:
    return sum(run(chain(length, layer), X, rules).journal.tried.values())


@pytest.mark.parametrize("layer", [nn.Identity, nn.Sigmoid])
def test_attempts_grow_linearly(layer: type[nn.Module]) -> None:
    """H25: ten times the nodes: about ten times the attempts, if all sites match or none does."""
    rules = "\n".join(
        [
            "exact rule drop { match { y = identity(x) } rewrite { y = x } }",
            "exact rule two { match { h = sigmoid(x)\n y = sigmoid(h) }",
            "where { 1 == 2 } rewrite { y = h } }",
        ]
    )
    few, many = tried(30, rules, layer), tried(300, rules, layer)
    assert few >= 30
    assert many <= 11 * few


def test_attempts_on_one_value_with_many_readers_are_bounded() -> None:
    text = "exact rule drop { match { y = mul(x, 1) } rewrite { y = x } }"
    model = Fn(lambda m, x: sum((x * 1 for _ in range(30)), x))
    driven = run(model, X, text).check()
    assert driven.applied == 30
    assert driven.journal.tried["drop"] <= 30 * 2
