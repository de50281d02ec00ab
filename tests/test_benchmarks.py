"""The benchmark scripts run on small inputs, check their own results and print tables."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from . import fresh

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import each other as scripts do: from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def measure(scripts: None) -> ModuleType:
    return importlib.import_module("measure")


@pytest.fixture
def report(scripts: None) -> ModuleType:
    return importlib.import_module("report")


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = fresh.run(command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str) -> list[list[str]]:
    """The cells of the table's body."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def has_peer() -> bool:
    return all(importlib.util.find_spec(n) for n in ("onnx", "onnxscript"))


@pytest.mark.slow
def test_rewriting_measures_every_graph_and_tool() -> None:
    peers = [] if has_peer() else ["--skip-peers"]
    nets = ["--nets", "resnet8", "densenet8"]
    text = run("rewriting.py", "--sizes", "100", "400", *nets, "--rounds", "1", *peers)
    found = rows(text)
    assert [row[0].split(",")[0] for row in found] == [
        "chain 100", "chain 400", "resnet8-like", "densenet8-like",
    ]  # fmt: skip
    assert "50 matches" in found[0][0]
    assert "200 matches" in found[1][0]
    assert all(row[1].endswith("s") for row in found)
    assert all((row[3] == "--") == bool(peers) for row in found)
    assert "lissom n^" in text


@pytest.mark.slow
def test_folding_counts_pairs_and_compares_with_fuse() -> None:
    found = rows(run("folding.py", "--nets", "resnet8", "densenet8", "--rounds", "1"))
    assert found[0][0] == "resnet8-like, 9 of 9 batch norms fold"
    assert found[1][0] == "densenet8-like, 5 of 11 batch norms fold"
    assert all(cell.endswith("s") for row in found for cell in row[1:6])


@pytest.mark.slow
def test_startup_times_each_command() -> None:
    found = rows(run("startup.py", "--rounds", "1"))
    assert [row[0] for row in found] == [
        "`lissom --help`", "`lissom check`, 300 lines", "`python -c pass`",
    ]  # fmt: skip


def test_exponent_of_a_power_law(measure: ModuleType) -> None:
    assert measure.exponent({n: 3e-6 * n**2 for n in (10, 100, 1000)}) == pytest.approx(2.0)
    assert math.isnan(measure.exponent({10: 1.0}))


def test_rounds_are_interleaved_and_ratios_are_taken_per_round(measure: ModuleType) -> None:
    order: list[str] = []

    def contestant(name: str, most: int) -> object:
        return measure.Contestant(name, lambda: name, order.append, most_rounds=most)

    times = measure.race([contestant("a", 9), contestant("b", 1)], 3)
    assert order == ["a", "b", "a", "a"]
    assert len(times.seconds["a"]) == 3
    fixed = measure.Times({"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 4.0], "once": [8.0]})
    assert fixed.ratio("theirs", "ours") == 2.0
    assert fixed.ratio("once", "ours") == 4.0


def test_a_check_stops_a_race(measure: ModuleType) -> None:
    def refuse(result: object) -> None:
        raise AssertionError(f"{result} rewrites")

    with pytest.raises(AssertionError, match="7 rewrites"):
        measure.race([measure.Contestant("a", lambda: 7, lambda given: given, refuse)], 1)


def test_a_table_replaces_what_stands_between_its_markers(report: ModuleType) -> None:
    page = "# Speed\n<!-- benchmark a -->\nold\n<!-- end a -->\nrest\n"
    assert report.put(page, "a", "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no markers"):
        report.put(page, "b", "new")


def test_the_page_has_a_place_for_every_script(report: ModuleType) -> None:
    page = (FOLDER.parent / "docs" / "benchmarks.md").read_text()
    for name in report.SCRIPTS:
        assert report.put(page, name, "x") != page


def test_the_checked_program_has_the_length_it_claims(scripts: None) -> None:
    startup = importlib.import_module("startup")
    text = startup.program()
    assert text.count("\n") == startup.LINES
    assert text.count("exact rule own_") > 10


def test_the_release_check_counts_what_it_tries() -> None:
    printed = run("release.py", "texts", "artifacts", "kills", "--share", "0.1%")
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("| ")]
    counts = {row[1].strip(): (row[2].strip(), row[3].strip()) for row in rows[2:]}
    assert counts == {
        "mutated rule files": ("100", "0"),
        "changed artifacts": ("10", "0"),
        "killed writers": ("1", "0"),
    }


def test_the_wrong_rule_is_refused_at_test_and_at_compile(scripts: None) -> None:
    wrong_rule = importlib.import_module("wrong_rule")
    assert "V101" in wrong_rule.by_lissom().said
    assert wrong_rule.by_lissom_test().said == "FAILED, exit code 1"
    assert wrong_rule.row("peer", "no-such-package-at-all", wrong_rule.by_xdsl)[1] == "missing"


# -- releases of torch -----------------------------------------------------------------------------


@pytest.fixture
def matrix(scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in an environment that is this one."""
    found = importlib.import_module("matrix")
    monkeypatch.setattr(found, "WORK", tmp_path)
    (tmp_path / "2.99.0").mkdir()
    return found


def test_a_release_goes_on_where_it_was(
    matrix: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"test_good.py": "def test_a(): pass", "test_bad.py": "def test_b(): assert 0"}
    files |= {"test_dead.py": "import os\ndef test_c(): os._exit(9)"}
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.write_text(files[path.name])
    release = matrix.Release("2.99.0")
    release.python = sys.executable
    first = matrix.tested(release, paths, "abc", 1)
    assert [(each["passed"], each["failed"]) for each in first] == [(1, 0), (0, 1), (0, 1)]
    assert first[1]["names"][0].endswith("test_bad::test_b")
    assert first[2]["names"] == ["test_dead.py: the process ended with 9"]
    assert matrix.tested(release, paths, "abc", 1) == first
    assert capsys.readouterr().out.count("torch 2.99.0") == 3
    assert matrix.Release("2.99.0").known("abd") == {}


def test_rows_of_other_releases_stay(matrix: ModuleType, report: ModuleType) -> None:
    rows = [[version, *"abcdefghi"] for version in ("2.9.1", "2.10.0+cpu", "2.13.0")]
    page = report.table(matrix.HEADER, rows)
    assert list(matrix.kept(page, ["2.10.0"])) == [rows[0], rows[2]]
    assert sorted([rows[2], rows[0], rows[1]], key=matrix.order) == rows
