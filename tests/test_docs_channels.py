"""What docs/channels.md shows is what happens, on the model that it shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lissom.passes import importance

from .test_docs import ROOT, _assert_like, _run, blocks

PAGE = ROOT / "docs" / "channels.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and the program of the page."""
    folder = tmp_path_factory.mktemp("page")
    (model,), (rules,) = blocks(PAGE, "python"), blocks(PAGE, "lissom")
    (folder / "net.py").write_text(model)
    (folder / "thin.lissom").write_text(rules)
    return folder


@pytest.mark.parametrize("number", range(5))
def test_transcripts_hold(number: int, folder: Path) -> None:
    command, *wanted = blocks(PAGE, "console")[number].splitlines()
    words = command.removeprefix("$ lissom ").split()
    _assert_like(wanted, _run([sys.executable, "-m", "lissom", *words], folder).splitlines())


def test_every_transcript_is_run() -> None:
    assert len(blocks(PAGE, "console")) == 5


def test_the_program_of_the_page_checks(folder: Path) -> None:
    printed = _run([sys.executable, "-m", "lissom", "check", "thin.lissom", "--strict"], folder)
    assert "0 errors, 0 warnings" in printed


def test_every_score_is_listed() -> None:
    text = PAGE.read_text("utf-8")
    names = [f.__name__ for f in importance.FUNCTIONS if f is not importance.top]
    assert [name for name in names if f"`{name}(" not in text] == []


OWN = """\
extern fn spread_over(slices: any) -> f[N] pure
approx rule own() {
  match dim D in channels
  where { sliceable(D); not boundary(D) }
  let { keep = top(spread_over(params(D)), D - 2) }
  perturb { zero(readers(D), outside = keep) }
  rewrite { D := keep }
  ensure { params(after) < params(before) }
}
pipeline p { budget drift(outputs) <= 90%; stage cut { once own() at "inner" } }
"""
SPREAD = """
def spread_over(slices):
    return sum(part.double().std(1) for part in slices if part.shape[1] > 1)

functions = {"spread_over": spread_over}
"""


def test_a_score_of_the_model_file(folder: Path) -> None:
    (folder / "own.py").write_text((folder / "net.py").read_text() + SPREAD)
    (folder / "own.lissom").write_text(OWN)
    command = [sys.executable, "-m", "lissom", "plan", "own.py", "own.lissom"]
    assert "own 1 " in " ".join(_run(command, folder).split())
