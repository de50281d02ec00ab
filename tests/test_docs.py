"""What the documentation shows is what happens: rules check, Python runs, transcripts hold."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from lissom.grammar.checks.check import check
from lissom.grammar.library.program import RuleLibrary
from lissom.grammar.library.vocabulary import Declarations, library_sources
from lissom.grammar.text.parse import parse

from . import fresh
from .demo_run import demo_run

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("proof", "language", "engine", "rule")),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


TEXTS = [(page.name, text) for page in PAGES for text in blocks(page, "lissom")]


@pytest.mark.parametrize(("page", "text"), TEXTS)
def test_rule_texts_check(page: str, text: str) -> None:
    file = parse(text, page)
    shelf = RuleLibrary(library_sources())
    rules = [rule for name in shelf.names if (rule := shelf.get(name)) is not None]
    found = check(file, Declarations(library_sources(), [file]), rules)
    assert [str(d) for d in found if d.severity == "error"] == []


def test_the_readme_has_a_rule_python_and_a_transcript() -> None:
    assert len(TEXTS) >= 3
    assert blocks(PAGES[0], "python")
    assert blocks(PAGES[0], "console")


def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    code = "\n".join(blocks(PAGES[0], "python"))
    done = _run([sys.executable, "-c", code], tmp_path)
    assert "('fold_bn', '0')" in done


def test_python_of_how_to_add_a_rule_runs(tmp_path: Path) -> None:
    _run([sys.executable, "-c", "\n".join(blocks(PAGES[-1], "python"))], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_prints_the_transcript(tmp_path_factory: pytest.TempPathFactory) -> None:
    (wanted,) = blocks(PAGES[0], "console")
    folder, printed = demo_run(tmp_path_factory)
    assert (folder / "weights.safetensors").is_file()
    _assert_like(wanted.removeprefix("$ lissom demo\n").splitlines(), printed.splitlines())


@pytest.mark.parametrize("name", ["own_rule", "why"])
def test_examples_run(name: str, tmp_path: Path) -> None:
    printed = _run([sys.executable, str(ROOT / "examples" / f"{name}.py")], tmp_path)
    wanted = {"own_rule": "error[V101]", "why": "left alone: read_twice: `h` is also read by"}
    assert wanted[name] in printed


def test_lines_of_the_test_block_in_the_docs_hold(tmp_path: Path) -> None:
    text, _ = blocks(ROOT / "docs" / "proof.md", "lissom")
    (tmp_path / "page.lissom").write_text(f"{text}\n")
    printed = _run([sys.executable, "-m", "lissom", "test", "page.lissom"], tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == ["ok"] * 4 + ["0"]


def test_the_missing_guard_of_the_docs_is_proposed(tmp_path: Path) -> None:
    page = ROOT / "docs" / "proof.md"
    _, text = blocks(page, "lissom")
    (tmp_path / "clamps.lissom").write_text(text)
    (transcript,) = blocks(page, "console")
    command, *wanted = transcript.splitlines()
    assert wanted.pop() == "..."
    words = [*command.removeprefix("$ lissom ").split(), "--jobs", "1"]
    printed = _run([sys.executable, "-m", "lissom", *words], tmp_path, code=1).splitlines()
    start = printed.index(wanted[0])
    _assert_like(wanted, printed[start : start + len(wanted)])


def test_rules_of_a_user_are_tested_the_same_way(tmp_path: Path) -> None:
    path = ROOT / "examples" / "activations.lissom"
    command = [sys.executable, "-m", "lissom", "test", str(path), "--models", "60", "--jobs", "1"]
    printed = _run(command, tmp_path)
    first, second = (line.split() for line in printed.splitlines()[1:3])
    assert (first[0], first[-1]) == ("written_silu", "verified")
    assert (second[0], second[-1]) == ("written_hardsigmoid", "verified")


def _run(command: list[str], folder: Path, code: int = 0) -> str:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    done = fresh.run(command, cwd=folder, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def _assert_like(wanted: list[str], found: list[str]) -> None:
    """Line by line; `...` stands for any text, and runs of blanks count as one."""
    assert len(wanted) == len(found), "\n".join(found)
    for pattern, line in zip(wanted, found, strict=True):
        parts = [re.escape(" ".join(part.split())) for part in pattern.split("...")]
        regex = r"\s*" + r".*".join(parts) + r"\s*"
        assert re.fullmatch(regex, " ".join(line.split())), f"{line!r} is not like {pattern!r}"
