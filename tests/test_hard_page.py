"""docs/hard_cases.md: every row is there, has tests that exist, and each of them names its row."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "hard_cases.md"
ROWS = {"S": 31, "H": 28, "I": 63}
"""How many rows each table has; they are numbered from 01 on."""

_ROW = re.compile(r"\| ([A-Z]\d\d) \| (.+) \| (.+) \| (.+) \|")
_TEST = re.compile(r"`(\w+\.py)::(\w+)`")
_ID = re.compile(r"\b[SHI]\d\d\b")
_FATE = re.compile(r"\b(equal|within budget|refused|accepted|whole|untouched)\b")


def rows(text: str) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Id, case, what happens, and the tests as (file, function)."""
    return [(m[1], m[2], m[3], _TEST.findall(m[4])) for m in _ROW.finditer(text)]


ALL = rows(PAGE.read_text("utf-8"))


@cache
def functions(file: str) -> dict[str, str]:
    """The tests of a file with their docstrings."""
    tree = ast.parse((HERE / file).read_text("utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name: ast.get_docstring(f) or "" for f in found if f.name.startswith("test_")}


def named(file: str, name: str) -> set[str]:
    """The rows that a test says it is about: in its name or at the start of its docstring."""
    in_name = re.match(r"test_([shi]\d\d)_", name)
    in_words = re.match(r"(?:[SHI]\d\d[,:.]\s*)+", functions(file)[name])
    return {
        *([in_name[1].upper()] if in_name else []),
        *_ID.findall(in_words[0] if in_words else ""),
    }


def test_every_row_is_there_once_and_in_order() -> None:
    wanted = [
        f"{table}{number:02}" for table, count in ROWS.items() for number in range(1, count + 1)
    ]
    assert [row[0] for row in ALL] == wanted


@pytest.mark.parametrize("row", ALL, ids=[row[0] for row in ALL])
def test_each_row_has_tests_that_name_it(row: tuple[str, str, str, list[tuple[str, str]]]) -> None:
    number, case, fate, tests = row
    assert case.strip()
    assert fate.strip()
    assert tests, f"{number} has no test"
    for file, name in tests:
        assert (HERE / file).is_file(), file
        assert name in functions(file), f"{file} has no {name}"
        assert number in named(file, name), f"{file}::{name} does not name {number}"


def every_test() -> Iterator[tuple[str, str]]:
    for path in sorted(HERE.glob("test_*.py")):
        yield from ((path.name, name) for name in functions(path.name))


def test_each_test_that_names_a_row_stands_in_it() -> None:
    """So that a row shows everything there is about it."""
    listed = {(number, *test) for number, _, _, tests in ALL for test in tests}
    said = {(number, file, name) for file, name in every_test() for number in named(file, name)}
    assert said - listed == set()


def test_what_happens_is_one_of_few_things() -> None:
    """A row that says none of these words would be a case that ends silently."""
    silent = [number for number, _, fate, _ in ALL if not _FATE.search(fate)]
    assert silent == []
    assert not _FATE.search("the output changes")


def test_codes_of_the_page_are_codes() -> None:
    from lissom.grammar.codes import codes

    used = {code for _, _, fate, _ in ALL for code in re.findall(r"\b[A-Z]\d{3}\b", fate)}
    assert len(used) > 20
    assert used <= set(codes())


def test_a_missing_row_would_be_seen() -> None:
    (row,) = rows("| S01 | a case | equal | `test_gone.py::test_a` `test_b.py::test_c` |")
    assert row == ("S01", "a case", "equal", [("test_gone.py", "test_a"), ("test_b.py", "test_c")])
    assert rows("| S1 | a case | equal | - |") == []
