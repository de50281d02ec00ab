"""Every planted mistake in tests/errors gives its exact message; a file is named by its code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lissom.grammar.checks.check import check
from lissom.grammar.codes import codes
from lissom.grammar.diagnostics import Diagnostic, LissomError, Source, render
from lissom.grammar.library.vocabulary import Declarations, library_sources
from lissom.grammar.text.parse import parse

FOLDER = Path(__file__).parent / "errors"
FILES = sorted(FOLDER.glob("*.lissom"))


@pytest.fixture(scope="module")
def known() -> Declarations:
    """A vocabulary of its own, so that line numbers in the expected messages stay."""
    functions = ("passes/builtin.lissom", "passes/later.lissom")
    builtin = [s for s in library_sources() if s.name in functions]
    ops = Source("ops.lissom", (FOLDER / "ops.vocabulary").read_text("utf-8"))
    return Declarations([*builtin, ops])


def diagnose(path: Path, known: Declarations) -> list[Diagnostic]:
    try:
        return check(parse(path.read_bytes().decode("utf-8"), path.name), known)
    except LissomError as error:
        return list(error.diagnostics)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_message(path: Path, known: Declarations, update_golden: bool) -> None:
    found = diagnose(path, known)
    text = "\n\n".join(map(render, found)) + "\n"
    golden = path.with_suffix(".txt")
    if update_golden:
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")
    assert path.stem[:4].upper() in {d.code for d in found}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_message_is_complete(path: Path, known: Declarations) -> None:
    """Each has a registered code and a place in the text; rendering keeps to one screen."""
    for diagnostic in diagnose(path, known):
        assert diagnostic.code in codes()
        assert diagnostic.labels[0].span is not None
        assert len(render(diagnostic).splitlines()) <= 24


def test_every_static_code_has_a_planted_mistake() -> None:
    planted = {path.stem[:4].upper() for path in FILES}
    static = {code for code, info in codes().items() if info.static}
    assert static - planted == set()


def test_every_code_that_is_raised_has_a_page() -> None:
    root = Path(__file__).parent.parent
    sources = [
        p
        for floor in ("grammar", "rewrite", "passes", "lissom")
        for p in (root / floor).rglob("*.py")
    ]
    used = {
        code for path in sources for code in re.findall(r'"([A-Z]\d{3})"', path.read_text("utf-8"))
    }
    assert len(used) > 80
    assert used <= set(codes()), sorted(used - set(codes()))
