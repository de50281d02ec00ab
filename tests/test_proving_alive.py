"""`lissom test` goes on: whatever happens to one rule is said of that rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lissom.cli import cli
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving import near_miss, prove
from lissom.rewrite.proving.models.grown import Grown
from lissom.rewrite.proving.subject import Subject

RIGHT = """
exact rule negates {
  match {
    h = neg(x)
    y = neg(h)
  }
  rewrite { y = x }
}
"""


def run(tmp_path: Path, text: str, *options: str) -> Result:
    path = tmp_path / "rules.lissom"
    path.write_text(text)
    return CliRunner().invoke(cli, ["test", str(path), "--models", "20", "--jobs", "1", *options])


def rows(found: Result) -> dict[str, str]:
    """The verdict on each rule."""
    lines = [line for line in found.stdout.splitlines() if "/" in line]
    return {line.split()[0]: line.split(maxsplit=8)[-1] for line in lines}


def proof_of(text: str, models: int = 20) -> prove.Proof:
    rule = parse(text).all(t.Rule)[0]
    return prove.prove(Subject(rule, Vocabulary.library(), FUNCTIONS), models)


def test_a_rule_that_never_fires_is_not_tested(tmp_path: Path) -> None:
    guard = '  where { rank(x) > 9  else "few axes" }\n  rewrite'
    found = run(tmp_path, RIGHT.replace("  rewrite", guard))
    assert found.exit_code == 1
    assert rows(found) == {"negates": "NOT TESTED"}
    assert "error[V114]: `negates` was not tested" in found.output
    assert 'never fired: `rank(x) > 9 else "few axes"` stood in the way at' in found.output


def test_what_check_finds_is_said_and_the_other_rules_are_tested(tmp_path: Path) -> None:
    unbound = RIGHT.replace("negates", "forgets").replace("y = x", "y = z")
    found = run(tmp_path, RIGHT + unbound)
    assert found.exit_code == 1
    assert rows(found) == {"negates": "verified", "forgets": "NOT TESTED"}
    assert "`lissom check` finds N001" in found.output
    alone = run(tmp_path, RIGHT + unbound, "--rule", "negates")
    assert alone.exit_code == 0
    assert "N001" not in alone.output


def test_a_file_that_cannot_be_read_beside_one_that_can(tmp_path: Path) -> None:
    (tmp_path / "broken.lissom").write_text("exact rule {")
    found = run(tmp_path, RIGHT, str(tmp_path / "broken.lissom"))
    assert found.exit_code == 1
    assert "error[E001]" in found.output
    assert rows(found) == {"negates": "verified"}


def test_a_failure_of_the_tester_is_no_mistake_of_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Grown:
        raise ZeroDivisionError("of the tester")

    monkeypatch.setattr(near_miss, "near_misses", broken)
    monkeypatch.setattr(prove, "near_misses", broken)
    found = run(tmp_path, RIGHT)
    assert found.exit_code == 1
    assert rows(found) == {"negates": "NOT TESTED"}
    assert "the tester failed at test_proving_alive.py" in found.output


@pytest.mark.parametrize(
    "pattern",
    ["softmax(x, dim = -1, dtype = none)", "adaptive_avg_pool2d(x, output_size = (1, 1))"],
)
def test_a_near_miss_that_an_op_cannot_hold_is_not_drawn(pattern: str) -> None:
    """A softmax takes `dtype = none`; a pool over one axis takes no pair."""
    text = f"exact rule same {{\n match {{ y = {pattern} }}\n rewrite {{ y = {pattern} }}\n}}"
    proof = proof_of(text)
    assert proof.failures == []
    assert proof.explored.fired >= 20
    assert proof.near


def test_an_op_gives_as_many_parts_as_the_pattern_names() -> None:
    text = """
    exact rule parts {
      match {
        (a, b, c) = chunk(x, dim = 1)
        y = cat(a, b, c, dim = 1)
      }
      rewrite { y = relu(x) }
    }
    """
    proof = proof_of(text)
    assert proof.explored.failure is not None
    assert proof.explored.failure.outcome.kind == "UNSOUND"
    assert proof.explored.failure.outcome.condition == "V101"
