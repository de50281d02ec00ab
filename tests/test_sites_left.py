"""An error that one site causes leaves that site; the others are rewritten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.capture.capture import capture
from lissom.rewrite.explain.sensitivity import effects
from lissom.rewrite.journal import Applied, Journal, Refused
from lissom.rewrite.measure.samples import Samples
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.rules.state import State

from .support import library, the_rule

SEED = torch.Generator().manual_seed(0)


class Looked(nn.Module):
    """Features that only a table of numbers makes, and others that a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 8, generator=SEED))
        self.inner, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.inner(self.table[index]).relu())


class Scaled(nn.Module):
    """Features that a parameter brings to an input that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(1, 4, 8, generator=SEED))
        self.inner, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.factor * x.unsqueeze(-1)).relu())


MADE_BY_NOTHING = [(Looked, torch.tensor([[1, 2], [3, 4]])), (Scaled, torch.ones(2, 4))]


def cut(model: nn.Module, inputs: Any, rule: str) -> lissom.Result:
    steps = f"budget drift(outputs) <= 1000%; stage s {{ {rule} }}"
    text = f"{library('prune', 'slim')} pipeline p {{ {steps} }}"
    return lissom.compile(model.eval(), text, inputs=(inputs,))


@pytest.mark.parametrize("rule", ["prune_l1(ratio = 50%)", "prune_global(ratio = 50%)"])
@pytest.mark.parametrize("step", ["once {}", "each {} order by saving", "fixpoint {{ {} }}"])
@pytest.mark.parametrize(("kind", "inputs"), MADE_BY_NOTHING)
def test_a_dimension_that_no_weight_makes_is_left(
    kind: type[nn.Module], inputs: Tensor, step: str, rule: str
) -> None:
    result = cut(kind(), inputs, step.format(rule))
    assert [event.bindings["D"] for event in result.journal.of(Applied)][:1] == ["6 -> 3"]
    left = [event for event in result.journal.of(Refused) if event.code == "K001"]
    assert left
    assert "guard what it is given" in left[0].reason


@pytest.mark.parametrize("name", ["prune_l1", "prune_global"])
def test_sensitivity_names_a_dimension_that_no_weight_makes(name: str) -> None:
    captured = capture(Looked().eval(), (MADE_BY_NOTHING[0][1],))
    samples, journal = Samples(tuple(captured.inputs)), Journal()
    vocabulary = Vocabulary.library()
    state = State(captured.module, vocabulary, FUNCTIONS, QUESTIONS, samples, journal)
    found = effects(state, the_rule(library("prune", "slim"), name), None)
    reasons = {effect.site: effect.reason.partition(":")[0] for effect in found}
    assert reasons == {"table": "`l1_over`", "inner": "", "head": "it can be seen at output"}


OPS = """
exact rule r {
  match { h = add(x, k); y = relu(h) }
  where { GUARD  else "not so" }
  rewrite { g = add(x, k); y = clamp(g, min = 0) }
}
pipeline p { stage s { once r } }
"""


class Added(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 2.0).relu()


def asked(guard: str) -> list[Refused]:
    result = lissom.compile(
        Added().eval(), OPS.replace("GUARD", guard), inputs=(torch.ones(2, 3, 4),)
    )
    return [event for event in result.journal.of(Refused) if not event.structural]


@pytest.mark.parametrize(
    "guard",
    [
        "rank(k) == 1",
        "numel(k) == 2",
        "dtype(k) == dtype(x)",
        "shape(k) == shape(x)",
        "rank(x) == 2",
    ],
)
def test_a_number_has_no_axes(guard: str) -> None:
    """Rank 0, one number, no extents; its type is Python's."""
    assert [(event.code, event.reason) for event in asked(guard)] == [("", "not so")]


@pytest.mark.parametrize(
    ("guard", "why"),
    [
        ("size(k, 0) == 1", "it has 0 axes, and none is axis 0"),
        ("size(x, 3) == 1", "it has 3 axes, and none is axis 3"),
        ("shape((k, x)) == 1", "a list has no axes"),
    ],
)
def test_what_has_no_value_at_a_site_leaves_it(guard: str, why: str) -> None:
    (left,) = asked(guard)
    assert left.code == "R001"
    assert why in left.reason
