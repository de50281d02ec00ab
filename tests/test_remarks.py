"""What a run says as a whole: in its result, once, and by its name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.checks.check import check_program
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.library.program import program_of

A = torch.ones(2, 3)


def test_a_result_says_which_rules_changed_nothing() -> None:
    result = lissom.compile(
        nn.Sequential(nn.Linear(3, 3)).eval(),
        "pipeline p { stage s { once fold_bn } }",
        inputs=(A,),
    )
    assert [(note.code, note.severity) for note in result.notes] == [("W702", "warning")]
    assert result.notes[0].helps == ("lissom why MODEL RULE --program PROGRAM",)


def test_rules_that_changed_nothing_are_one_remark() -> None:
    result = lissom.compile(
        nn.Sequential(nn.Linear(3, 3)).eval(),
        "pipeline p { stage s { once fold_bn } stage t { once drop_dropout, drop_identity } }",
        inputs=(A,),
    )
    (note,) = result.notes
    assert (note.code, note.message) == ("W702", "3 rules changed nothing")
    assert [text.partition(" changed")[0] for text in note.notes] == [
        "drop_dropout",
        "drop_identity",
        "fold_bn",
    ]


class Counting(nn.Module):
    """A number that no attribute of Python holds, once it is scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_state_of_a_scripted_part_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), torch.jit.script(Counting())).eval()
    with pytest.raises(LissomError) as caught:
        lissom.compile(model, "pipeline p { stage s { once fold_bn } }", inputs=(A,))
    (found,) = caught.value.diagnostics
    assert (found.code, found.labels[0].where) == ("M003", "1")
    assert "the scripted part `1` changes its own state" in found.message


NAMES = "abcdefg"


@pytest.mark.parametrize("count", [2, 7])
def test_rules_that_want_the_same_sites_are_told_in_one_line(count: int) -> None:
    shape = "exact rule {0} {{ match {{ y = relu(x); x : f[N, {1}] }} rewrite {{ y = x }} }}\n"
    text = "".join(shape.format(name, name.upper()) for name in NAMES[:count])
    text += f"pipeline p {{ stage s {{ fixpoint {{ {'; '.join(NAMES[:count])} }} }} }}"
    found = [d for d in check_program(program_of(text, "text")) if d.code == "O001"]
    assert len(found) == 1
    assert found[0].message.startswith("21 pairs of rules: `a` and `b`, " if count == 7 else "`a`")
