"""Compiling refuses what `lissom check` refuses, in the same words, before it looks at a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.__main__ import main
from lissom.commands.check import check_path

HERE = Path(__file__).parent
BROKEN = [
    path
    for path in sorted((HERE / "errors").glob("*.lissom"))
    if any(found.severity == "error" for found in check_path(path))
]


class Untouchable(nn.Module):
    """A model that no one may run or capture: in training mode, and without a forward."""


def test_there_is_something_to_refuse() -> None:
    assert len(BROKEN) > 40


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_what_check_refuses_is_refused_before_capture(path: Path) -> None:
    with pytest.raises(lissom.LissomError) as caught:
        lissom.compile(Untouchable(), path, inputs=(torch.rand(1),))
    assert list(caught.value.diagnostics) == list(check_path(path))


SOFT = """
approx rule soft {
  match { y = relu(x) }
  rewrite { y = silu(x) }
  ensure { error(y) <= 100% }
}
"""


def test_warnings_stop_nothing_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "soft.lissom"
    path.write_text(SOFT)
    result = lissom.compile(nn.Sequential(nn.ReLU()).eval(), path, inputs=(torch.rand(4, 3) + 1,))
    assert [event.rule for event in result.applied] == ["soft"]
    assert [note.code for note in result.notes] == ["X003"]
    assert list(result.notes) == list(check_path(path))


WRONG = "exact rule wrong { match { y = linear(x) as l } perturb { l.weight := 0 * l.weight } }"


def test_used_files_are_checked_too(tmp_path: Path) -> None:
    (tmp_path / "lab.lissom").write_text(WRONG)
    path = tmp_path / "main.lissom"
    path.write_text("use lab\npipeline p { stage s { once wrong } }")
    found = list(check_path(path))
    assert "X001" in [diagnostic.code for diagnostic in found]
    with pytest.raises(lissom.LissomError) as caught:
        lissom.compile(Untouchable(), path, inputs=(torch.rand(1),))
    assert list(caught.value.diagnostics) == found


def test_a_used_file_of_the_same_folder_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab.lissom").write_text(WRONG)
    (tmp_path / "main.lissom").write_text("use lab\npipeline p { stage s { once wrong } }")
    assert main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error[X001]") == 1


def test_an_op_of_the_library_cannot_be_declared_again(tmp_path: Path) -> None:
    path = tmp_path / "again.lissom"
    path.write_text("op relu(x: f[...]) -> f[...] { meaning torch.relu(input = x) }")
    (found,) = check_path(path)
    assert found.code == "N003"
    assert "passes/ops_activation.lissom" in str(found)


def test_macs_is_an_order() -> None:
    program = """
pipeline p {
  data calib = sample("train", 4)
  stage s { each low_rank_linear(rank = 8, budget = 100%) order by macs }
}"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 256)).eval()
    result = lissom.compile(model, program, data=lambda split: [(torch.randn(4, 64), None)])
    assert [event.site for event in result.applied] == ["2", "0"]
