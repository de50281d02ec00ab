"""Rules about types of numbers: they are drawn, and both sides run in the types that they name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lissom
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.prove import explore, prove
from lissom.rewrite.proving.subject import Subject


def subject(text: str) -> Subject:
    return Subject(parse(text).all(t.Rule)[0], Vocabulary.library(), FUNCTIONS)


def rule(match: str, rewrite: str, guard: str = "") -> str:
    where = f'  where {{ {guard}  else "another type" }}\n' if guard else ""
    return (
        f"exact rule cast_away {{\n  match {{\n    {match}\n    x : f[...]\n  }}\n"
        f"{where}  rewrite {{ {rewrite} }}\n}}"
    )


SAME = "dtype(y) == dtype(x)"
WRONG = {
    "dropped": (rule("y = cast(x)", "y = x"), "S001"),
    "there and back": (rule("h = cast(x)\n    y = cast(h)", "y = x", SAME), "V101"),
    "through fewer digits": (
        rule(
            "y = div(x, 0.3)",
            'h = cast(x, dtype = "bfloat16")\n k = cast(h, dtype = "float32")\n y = div(k, 0.3)',
            'dtype(x) == "float32"',
        ),
        "V101",
    ),
}
RIGHT = {
    "to its own type": rule("y = cast(x)", "y = x", SAME),
    "wide and back": rule('h = cast(x, dtype = "float64")\n    y = cast(h)', "y = x", SAME),
    "a factor before a cast": rule(
        'h = cast(x, dtype = "bfloat16")\n    y = mul(h, 0.5)',
        'g = mul(x, 0.5)\n y = cast(g, dtype = "bfloat16")',
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_cast_is_no_identity(name: str) -> None:
    text, code = WRONG[name]
    failure = explore(subject(text), 40).failure
    assert failure is not None
    assert (failure.outcome.kind, failure.outcome.condition) == ("UNSOUND", code)


@pytest.mark.parametrize("name", RIGHT)
def test_casts_that_change_nothing_beyond_rounding(name: str) -> None:
    proof = prove(subject(RIGHT[name]), 40)
    assert proof.failures == []
    assert proof.explored.fired >= 40


class Mixed(nn.Module):
    """Sums in float64, and everything else in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.to(torch.float32)).double().float() * 2.0


def test_compile_compares_a_dropped_cast_in_the_types_of_the_model() -> None:
    """In float64 the first cast would be none, and a rule that is right would be refused."""
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(5, 6)
    text = RIGHT["to its own type"] + "\n" + RIGHT["wide and back"].replace("cast_away", "back")
    program = f"{text}\npipeline p {{ stage a {{ fixpoint {{ cast_away; back }} }} }}"
    result = lissom.compile(model, program, inputs=(x,))
    assert {event.rule for event in result.applied} == {"cast_away", "back"}
    assert torch.equal(result.model(x), model(x))
