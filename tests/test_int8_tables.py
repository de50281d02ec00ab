"""Tables whose rows are codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime import Int8Embedding, int8_embedding

from .support import library

PROGRAM = """
pipeline p {
  data calib = sample("train", all)
  stage snap { once int8_embedding; once int8_linear_dynamic }
}
"""


class Words(nn.Module):
    def __init__(self, rows: int = 20, width: int = 6, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(rows, width, padding_idx=0)
        self.out = nn.Linear(width, rows, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, i: Tensor) -> Tensor:
        return self.out(torch.tanh(self.words(i)))


ROWS = torch.arange(15).reshape(3, 5)


def compiled(model: nn.Module, rules: str = "") -> Any:
    text = (rules or library("dynamic")) + PROGRAM
    return lissom.compile(model.eval(), text, inputs=(ROWS,), data=[(ROWS.flip(0), torch.zeros(3))])


def reasons(result: Any) -> set[str]:
    return {event.reason for event in result.journal.of(Refused)}


def test_rows_are_codes_times_their_scale() -> None:
    weight = torch.tensor([[127, -3], [0, 0], [-127, 64]], dtype=torch.int8)
    found = int8_embedding(torch.tensor([[2], [0]]), weight, torch.tensor([0.5, 1.0, 0.25]))
    assert found.tolist() == [[[-31.75, 16.0]], [[63.5, -1.5]]]
    assert int8_embedding(torch.tensor([], dtype=torch.long), weight, torch.ones(3)).shape == (0, 2)


def test_a_table_becomes_codes(tmp_path: Path) -> None:
    model = Words().eval()
    result = compiled(model)
    (table,) = (part for part in result.model.modules() if isinstance(part, Int8Embedding))
    assert table.weight.dtype == torch.int8
    assert (table.weight[0] == 0).all()  # padding: a row of zeros
    step = model.words.weight.abs().amax(1, True) / 127
    assert ((table(ROWS) - model.words(ROWS)).abs() <= step[ROWS] * 0.5001).all()
    found, want = result.model(ROWS), model(ROWS)
    assert ((found - want).norm() / want.norm()).item() < 0.02
    assert result.after.bytes < result.before.bytes / 2
    result.save(tmp_path / "small")  # reads it in a process of its own and compares
    assert torch.equal(lissom.load(tmp_path / "small")(ROWS), found)


def test_what_stays_says_why() -> None:
    assert "a row of one number is no shorter as a code and a scale" in reasons(
        compiled(Words(width=1))
    )
    tied = compiled(Words(tied=True))
    assert not any(isinstance(part, Int8Embedding) for part in tied.model.modules())
    assert any("its weight is shared with" in text for text in reasons(tied))
    assert "the table is in float64" in reasons(compiled(Words().double()))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("scale = sw) from e", "scale = 2 * sw) from e"),
        ("scale = sw) from e", "scale = ones(V)) from e"),
    ],
)
def test_a_wrong_scale_is_found_whatever_the_budget_allows(right: str, wrong: str) -> None:
    rules = library("dynamic")
    assert right in rules
    with pytest.raises(LissomError) as caught:
        compiled(Words(), rules.replace(right, wrong).replace("error(y) <= 5%", "error(y) <= 900%"))
    assert caught.value.diagnostics[0].code == "V101"
