"""Promises that would promise nothing, and what a plan must tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError

from .support import library

X = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
DATA = 'data calib = sample("train", 4); '


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Dropout()).eval()


def compiled(text: str, value: float = 0.9, model: nn.Module | None = None) -> lissom.Result:
    return lissom.compile(
        model or network(),
        text if "pipeline" in text else f"pipeline p {{ {DATA} {text} }}",
        inputs=(X,),
        data=lambda split: [(X, torch.zeros(4, dtype=torch.long))],
        metrics={"score": lambda model, batches: value},
    )


def refused(text: str, value: float = 0.9) -> LissomError:
    with pytest.raises(LissomError) as caught:
        compiled(text, value)
    assert [found.code for found in caught.value.diagnostics] == ["D008"]
    return caught.value


BUDGET = "budget drop(score) <= {} on calib; stage s {{ once drop_dropout }}"
FACTOR = "each low_rank_linear(rank = 2, budget = 100%)"
UNTIL = f"budget drift(outputs) <= 1000%; stage s {{{{ {FACTOR} until {{}} }}}}"


def test_a_score_between_0_and_1_cannot_fall_by_5() -> None:
    (found,) = refused(BUDGET.format(5)).diagnostics
    assert "the metric of the original is 0.9" in found.message
    assert found.helps == ("write `drop(score) <= 5%`",)


@pytest.mark.parametrize(
    ("bound", "value"), [("5%", 0.9), ("100%", 0.9), ("0.05", 0.9), ("5", 31.0)]
)
def test_a_drop_that_can_be_exceeded_is_judged(bound: str, value: float) -> None:
    """31 is a signal-to-noise ratio, say: it may fall by 5."""
    assert len(compiled(BUDGET.format(bound), value).applied) == 1


def test_a_cost_of_hundredths_is_no_share() -> None:
    (found,) = refused(UNTIL.format("params(model) <= 20")).diagnostics
    assert found.helps == ("write `params(model) <= 20%`",)
    whole = compiled(UNTIL.format("params(model) <= 2000"))
    assert [event.site for event in whole.applied] == ["0"]


ONE = """
exact rule one_relu {
  match {
    h = relu(x)
    y = relu(h)
  }
  rewrite { y = relu(x) }
}
pipeline p { stage s { STEP } }
"""


@pytest.mark.parametrize(
    ("step", "codes", "left"),
    [("once one_relu", ["W704"], 2), ("fixpoint { one_relu }", [], 1)],
)
def test_sites_that_once_makes_and_leaves_are_told(step: str, codes: list[str], left: int) -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()).eval()
    result = compiled(ONE.replace("STEP", step), model=model)
    assert ([note.code for note in result.notes], result.after.ops) == (codes, left)


def test_a_pass_that_leaves_nothing_says_nothing() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(40, 2)).eval()
    assert compiled(ONE.replace("STEP", "once one_relu"), model=model).notes == ()


class Both(nn.Module):
    """A convolution that a norm reads, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) + x


def test_an_exact_rule_that_costs_more_is_told() -> None:
    claimed = "  ensure { ops(after) == ops(before) - 1 }\n"
    rule = library("fold").replace("h = (conv1d", "shared h = (conv1d", 1).replace(claimed, "")
    name = "fold_bn"
    text = f"{rule} pipeline p {{ stage s {{ once {name} }} }}"
    result = lissom.compile(Both().eval(), text, inputs=(torch.randn(1, 3, 5, 5),))
    (note,) = (note for note in result.notes if note.code == "W705")
    assert note.message == f"{name} adds {4 * 9 * 3 * 9:,} MACs at 1 site"
