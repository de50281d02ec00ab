"""`where { ? }`: guards taken out of library rules come back, in other words at times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import lissom
from lissom import LissomError
from lissom.cli import cli
from lissom.grammar.checks.check import check_program
from lissom.grammar.library.program import program_of
from lissom.grammar.tree.clauses import guards
from lissom.jobs.proposing import lines
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.guards.holes import filled
from lissom.rewrite.proving.guards.predicates import predicate
from lissom.rewrite.proving.guards.propose import Proposal, propose
from lissom.rewrite.proving.guards.separate import ConditionColumn, SiteTable
from lissom.rewrite.proving.subject import Subject

PASSES = Path(__file__).parent.parent / "passes"
MODELS = 100

RUNNING = ("n.track_running_stats", "mode(n) == eval", "min(n.running_var) + n.eps > 0")
CLAMP = """
exact rule clamp_once {
  match {
    h = relu(x)
    y = hardtanh(h, min_val = a, max_val = b)
  }
  where { ? }
  rewrite { y = hardtanh(x, min_val = max(a, 0), max_val = b) }
}
"""
HALVES = """
exact rule halves {
  match {
    h = mul(x, 0.5)
    y = mul(h, 0.5)
  }
  where { ? }
  rewrite { y = mul(x, 0.25) }
}
"""
MEAN = """
exact rule mean_of_one {
  match {
    y = amax(x, dim = 1, keepdim = false)
  }
  where { ? }
  rewrite { y = mean(x, dim = 1, keepdim = false) }
}
"""
SHIFTED = """
exact rule shifted {
  match {
    h = add(x, 1)
    y = sub(h, 1, alpha = 1)
  }
  where { ? }
  rewrite { y = mul(x, 1) }
}
"""
POOLED = """
exact rule pool_first {
  match {
    h = batch_norm(x) as n
    y = max_pool2d(h) as p
  }
  where { ? }
  rewrite {
    z = p(x) from p
    y = n(z) from n
  }
}
"""
SHIFT = """
exact rule absorb_mine {
  match {
    h = add(x, k, alpha = 1)
    y = conv2d(h) as c
    x : f[N, I, H, W]
    h : f[N, I, H, W]
  }
  where { ? }
  let { b = per_channel(k, I, 1, rank(x)) }
  rewrite { y = c(x, bias = (c.bias or 0) + response(c.weight, b, groups = c.groups)) from c }
}
"""


def subject(text: str) -> Subject:
    program = program_of(text, "rules.lissom")
    (rule,) = program.own_rules.values()
    return Subject(rule, Vocabulary(program.declarations, {}), FUNCTIONS)


def holed(file: str, name: str, *without: str) -> str:
    """A rule of the library with a hole in the place of some of its guards."""
    program = program_of((PASSES / f"{file}.lissom").read_text("utf-8"), "library.lissom")
    rule = program.own_rules[name]
    text, start = rule.span.source.text, rule.span.start
    gone = [g.span for g in guards(rule) if g.condition.span.text in without]
    assert len(gone) == len(without)
    for span in reversed(gone):
        text = text[: span.start] + ("?" if span is gone[0] else "") + text[span.end :]
    end = rule.span.end - (len(rule.span.source.text) - len(text))
    return text[start:end].replace(f"rule {name} ", f"rule {name}_open ") + "\n"


def assert_proved(found: Proposal) -> None:
    """The rule with the proposal in it is verified, and the proposal is of use."""
    assert found.verdict == "verified", found
    assert 2 * found.kept > found.agreeing > 0


def proposed(file: str, name: str, *without: str) -> Proposal:
    return propose(subject(holed(file, name, *without)), MODELS)


def test_a_sign_comes_back() -> None:
    found = proposed("tidy", "drop_relu_of_softplus", "b > 0", "t >= 0")
    assert found.guard in {"b > 0; t >= 0", "b > 0; t > 0"}
    assert_proved(found)


def test_an_order_comes_back_as_two_comparisons() -> None:
    found = proposed("tidy", "merge_clamps", "max(a, c) <= min(b, d)")
    assert found.guard in {"a <= d; c <= b", "c <= b; a <= d"}
    assert_proved(found)


def test_the_mode_comes_back_and_the_same_text_gives_the_same_proposal() -> None:
    first = proposed("tidy", "drop_dropout", "mode(d) == eval")
    assert first.guard == "mode(d) == eval"
    assert_proved(first)
    again = proposed("tidy", "drop_dropout", "mode(d) == eval")
    assert replace(first, seconds=0.0) == replace(again, seconds=0.0)


@pytest.mark.slow
def test_a_gain_comes_back() -> None:
    found = proposed("fold", "sink_bn", "min(n.weight or 1) > 0")
    assert found.guard in {"min(n.weight or 1) > 0", "min(n.weight or 1) >= 0"}
    assert_proved(found)


@pytest.mark.slow
def test_a_rule_without_any_guard_or_shape() -> None:
    """Of three axes a pool in two directions takes the channels for rows."""
    found = propose(subject(POOLED), 200)
    conditions = set((found.guard or "").split("; "))
    assert conditions > {"rank(x) == 4", "mode(n) == eval"}
    (gain,) = conditions - {"rank(x) == 4", "mode(n) == eval"}
    assert gain in {"min(n.weight or 1) > 0", "min(n.weight or 1) >= 0"}
    assert found.verdict == "verified", found


@pytest.mark.slow
def test_three_guards_of_a_batch_norm_are_one() -> None:
    """Where nothing trains, statistics are there, and no variance is drawn below zero."""
    found = proposed("fold", "fold_bn", *RUNNING)
    assert (found.guard or "").startswith("mode(n) == eval")
    assert_proved(found)


@pytest.mark.slow
def test_padding_comes_back_for_merged_convolutions() -> None:
    found = proposed("merge", "merge_pointwise_conv", "p == 0 or not known(a.bias)")
    assert found.guard in {
        "p == 0",
        "p == 0 or not known(a.bias)",
        "p == 0 or max(abs(a.bias or 0)) == 0",
    }
    assert_proved(found)


@pytest.mark.slow
def test_all_guards_of_a_rule_come_back_in_an_order_that_can_be_asked() -> None:
    found = propose(subject(SHIFT), MODELS)
    conditions = (found.guard or "").split("; ")
    computed = "known(per_channel(k, I, 1, rank(x)))"
    wanted = {"c.padding == 0", "constant(k)", "dtype(h) == dtype(x)", computed}
    assert set(conditions) == wanted
    assert conditions.index("constant(k)") < conditions.index(computed)
    assert_proved(found)


def test_a_rule_that_needs_no_guard() -> None:
    found = propose(subject(HALVES), MODELS)
    assert (found.guard, found.clause, found.differing) == ("", "", 0)
    assert_proved(found)
    assert next(lines(found)).endswith("delete the `?`")


def test_nothing_separates_until_the_size_has_a_name() -> None:
    found = propose(subject(MEAN), MODELS)
    assert found.guard is None
    assert found.agreeing > 0 < found.differing
    agrees, differs = found.sites
    assert agrees.endswith(": the sides agree")
    assert "the sides differ by" in differs
    named = propose(subject(MEAN.replace("}", "  x : f[N, C, ...]\n  }", 1)), MODELS)
    # `C == 1` tells the sites apart, and yet the model would be wrong at another size.
    assert (named.guard, named.verdict) == (None, "")


def test_no_guard_can_help_where_the_sides_never_agree() -> None:
    found = propose(subject(HALVES.replace("0.25", "0.125")), 60)
    assert (found.guard, found.agreeing) == (None, 0)
    assert "no guard can help" in next(lines(found))
    assert len(found.sites) == 1


def test_settings_of_an_op_without_a_name_are_pointed_out() -> None:
    found = propose(subject(SHIFTED), MODELS)
    assert found.guard is None
    assert found.nameless == ("h = add(x, 1)",)


# -- the search ------------------------------------------------------------------------------------


def table(good: str, bad: str, **columns: str) -> SiteTable:
    """Sites from the right: `1` holds, `0` does not, `-` has no value."""

    def bits(text: str, mark: str) -> int:
        return int("".join("1" if letter == mark else "0" for letter in text), 2)

    asked = [
        ConditionColumn(predicate(name, 1), bits(text, "1"), bits(text, "0"), bits(text, "-"))
        for name, text in columns.items()
    ]
    return SiteTable(asked, int(good, 2), int(bad, 2), (1 << len(good)) - 1)


def best(found: SiteTable) -> str | None:
    chosen = found.best()
    return None if chosen is None else chosen.text


def test_one_condition_is_simpler_than_two() -> None:
    assert best(table("111000", "000111", a="111100", b="111001", c="111000")) == "c"
    assert best(table("111000", "000111", a="111100", b="111001", c="100000")) == "a; b"


def test_a_condition_without_a_value_is_asked_late_or_not_at_all() -> None:
    assert best(table("1100", "0011", a="110-", b="1110")) == "b; a"
    assert best(table("1100", "0011", a="110-", b="1101")) is None
    assert best(table("1100", "0001", a="11-0")) is None  # nor at a site that takes no side


def test_what_keeps_next_to_nothing_is_no_guard() -> None:
    assert best(table("1" * 10 + "0", "0" * 10 + "1", a="1" + "0" * 10)) is None


def test_an_alternative_has_to_be_worth_it() -> None:
    found = table("11111100", "00000011", a="11100000", b="00011100", c="00010000")
    chosen = found.best()
    assert chosen is not None
    wider = found.wider(chosen)
    assert wider is not None
    assert wider.text == "a or b"
    same = found.same(wider)
    assert same is None  # `a or b` is no column of the table
    none = table("1" * 60 + "0", "0" * 60 + "1", a="1" * 58 + "000", b="0" * 58 + "110")
    chosen = none.best()
    assert chosen is not None
    assert none.wider(chosen) is None


# -- what users see --------------------------------------------------------------------------------


def run(tmp_path: Path, text: str, *command: str) -> Result:
    path = tmp_path / "open.lissom"
    path.write_text(text)
    return CliRunner().invoke(cli, [command[0], str(path), *command[1:]])


def test_the_proposal_can_be_pasted(tmp_path: Path) -> None:
    found = run(tmp_path, CLAMP, "test", "--models", str(MODELS), "--jobs", "1")
    assert found.exit_code == 1
    assert "clamp_once  open: where { b >= 0 }" in found.stdout
    assert "error[V004]" in found.stderr
    assert "write `b >= 0`" in found.stderr
    pasted = CLAMP.replace("where { ? }", "where { b >= 0 }")
    assert run(tmp_path, pasted, "check", "--strict").exit_code == 0
    assert filled(subject(CLAMP).source, "b >= 0") == pasted
    tested = run(tmp_path, pasted, "test", "--models", str(MODELS), "--jobs", "1")
    assert (tested.exit_code, "verified" in tested.stdout) == (0, True)


def test_for_machines(tmp_path: Path) -> None:
    options = ("--models", "60", "--jobs", "1", "--format", "json")
    document = json.loads(run(tmp_path, CLAMP, "test", *options).stdout)
    (proposal,) = document["proposals"]
    assert document["exit"] == 1
    assert (proposal["rule"], proposal["verdict"]) == ("clamp_once", "open")
    assert proposal["clause"] == "where { b >= 0 }"
    assert proposal["kept"] <= proposal["agreeing"]


def test_the_checker_says_that_a_guard_is_open_and_judges_nothing_that_it_decides(
    tmp_path: Path,
) -> None:
    found = run(tmp_path, CLAMP, "check")
    assert found.exit_code == 0
    assert "warning[V004]: a guard of `clamp_once` is left open" in found.stderr
    assert run(tmp_path, CLAMP, "check", "--strict").exit_code != 0
    grows = CLAMP.replace("rewrite { y = hardtanh(x,", "rewrite { z = relu(x)\n y = hardtanh(z,")
    assert {d.code for d in check_program(program_of(grows, "a"))} == {"V004"}
    closed = {d.code for d in check_program(program_of(grows.replace("?", ""), "a"))}
    assert "L001" in closed


def test_a_rule_with_a_hole_is_never_applied() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Hardtanh()).eval()
    with pytest.raises(LissomError) as raised:
        lissom.compile(model, CLAMP, inputs=(torch.zeros(1, 2),))
    (found,) = raised.value.diagnostics
    assert (found.code, found.severity) == ("V004", "error")
    assert "lissom test" in found.helps[0]


def test_a_hole_among_guards_takes_no_account_of_what_they_exclude() -> None:
    """What a guard before the hole keeps away is no site."""
    text = CLAMP.replace("where { ? }", "where { b >= 0; ? }")
    assert propose(subject(text), 60).guard == ""
