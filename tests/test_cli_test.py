"""`lissom test` on the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from lissom.cli import cli
from lissom.commands.test import COLUMNS

from . import fresh

GOOD = """
exact rule halves {
  doc "Two halvings are one."
  match {
    h = mul(x, 0.5)
    y = mul(h, 0.5)
  }
  rewrite { y = mul(x, 0.25) }
}

test said {
  fires halves on mul(mul(x, 0.5), 0.5)
  silent halves on mul(relu(mul(x, 0.5)), 0.5)
}
"""
WRONG = GOOD.replace("0.25", "0.125")
OWN = """
import torch

def doubled(k):
    return 2 * k

functions = {"doubled": doubled}
"""


def run(tmp_path: Path, text: str, *options: str) -> Result:
    path = tmp_path / "rules.lissom"
    path.write_text(text)
    return CliRunner().invoke(cli, ["test", str(path), "--models", "30", "--jobs", "1", *options])


def test_a_right_rule_is_verified(tmp_path: Path) -> None:
    found = run(tmp_path, GOOD)
    assert found.exit_code == 0, found.output
    header, row, *cases, total = found.stdout.splitlines()
    assert tuple(header.split()) == COLUMNS
    assert row.split()[0] == "halves"
    assert row.endswith("verified")
    assert [line.split()[0] for line in cases] == ["ok", "ok"]
    assert total.startswith("1 rule, ")


def test_a_wrong_rule_fails_and_can_be_shown_again(tmp_path: Path) -> None:
    found = run(tmp_path, WRONG, "--failures", str(tmp_path / "found"))
    assert found.exit_code == 1
    assert "error[V110]: `halves` fails its test: UNSOUND (V101)" in found.output
    script = tmp_path / "found" / "halves.py"
    shown = fresh.run([sys.executable, str(script)], check=True)
    assert "torch.mul(" in shown.stdout
    assert "UNSOUND V101" in shown.stdout
    told = re.search(
        r"if it is applied: output 0 at \[.*\]: (\S+) before, (\S+) after", shown.stdout
    )
    assert told is not None
    assert told[1] != told[2]


def test_a_line_of_a_test_block_fails(tmp_path: Path) -> None:
    text = GOOD.replace(
        "silent halves on mul(relu(mul(x, 0.5)), 0.5)", "silent halves on mul(mul(x, 0.5), 0.5)"
    )
    found = run(tmp_path, text)
    assert found.exit_code == 1
    assert "error[V112]: test `said`: this does not hold" in found.output


def test_functions_of_a_python_file(tmp_path: Path) -> None:
    text = GOOD.replace("0.25", "doubled(0.125)").replace(
        "exact rule", "extern fn doubled(k: number) -> number pure\n\nexact rule"
    )
    (tmp_path / "own.py").write_text(OWN)
    found = run(tmp_path, text, "--python", str(tmp_path / "own.py"))
    assert found.exit_code == 0, found.output
    assert "verified" in found.stdout


def test_json_junit_and_github(tmp_path: Path) -> None:
    document = json.loads(run(tmp_path, GOOD, "--format", "json").stdout)
    (rule,) = document["rules"]
    assert rule["verdict"] == "verified"
    assert rule["killed"] == rule["mutants"] >= 10
    assert [test["holds"] for test in document["tests"]] == [True, True]
    suite = ElementTree.fromstring(run(tmp_path, WRONG, "--format", "junit").stdout)
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite[0].get("name") == "halves"
    line = run(tmp_path, WRONG, "--format", "github").stdout
    assert line.startswith("::error file=")


def test_the_certificate_names_the_rule_and_what_was_tried(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    assert run(tmp_path, GOOD, "--certificate", str(path), "--seed", "3").exit_code == 0
    document = json.loads(path.read_text())
    (rule,) = document["rules"]
    assert document["seed"] == 3
    assert len(rule["sha256"]) == 64
    assert rule["algebra"]["proved"] == rule["algebra"]["sites"] > 0
    assert rule["algebra"]["error"] <= 1e-12


def test_weak_is_a_warning_and_with_strict_an_error(tmp_path: Path) -> None:
    text = GOOD.replace("  rewrite", '  where { 2 > 1  else "never" }\n  rewrite')
    assert run(tmp_path, text).exit_code == 0
    assert run(tmp_path, text, "--strict").exit_code == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--rule", "third"), "no rule is called `third`"), (("--python", "no.py"), "no model file")],
)
def test_what_cannot_be_found(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    found = run(tmp_path, GOOD, *options)
    assert found.exit_code == 2
    assert said in found.output


def test_rules_without_an_engine_are_listed(tmp_path: Path) -> None:
    text = "exact rule cut {\n  match param w of _\n  rewrite { store w as raw(w) }\n}"
    found = run(tmp_path, text)
    assert "not run: cut" in found.output


def test_several_processes_give_the_same(tmp_path: Path) -> None:
    two = GOOD + GOOD.split("test said")[0].replace("halves", "quarters").replace("0.25", "0.25")
    one = run(tmp_path, two, "--format", "json")
    both = CliRunner().invoke(
        cli,
        [
            "test",
            str(tmp_path / "rules.lissom"),
            "--models",
            "30",
            "--jobs",
            "2",
            "--format",
            "json",
        ],
    )
    first, second = (json.loads(found.stdout)["rules"] for found in (one, both))
    for rule in (*first, *second):
        rule.pop("seconds")
    assert first == second


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    found = CliRunner().invoke(cli, ["test", str(tmp_path / "none.lissom")])
    assert found.exit_code == 2
    assert "error[E006]" in found.output
