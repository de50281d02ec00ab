"""The message about a loop names the rules in it."""

from __future__ import annotations

from lissom.rewrite.pipeline.loops import cycle, described_cycle


def test_a_pair_of_inverse_rules() -> None:
    assert cycle(["split", "join"] * 10) in (["split", "join"], ["join", "split"])
    assert described_cycle(["split", "join"] * 10).startswith(
        ("split -> join -> split", "join -> split")
    )


def test_rules_that_only_came_first_are_not_in_it() -> None:
    assert cycle(["tidy", "fold", *["a", "b", "c"] * 9]) == ["a", "b", "c"]


def test_a_rule_that_feeds_itself() -> None:
    assert cycle(["grow"] * 5) == ["grow"]
    assert "grow 5 of the last 5 times" in described_cycle(["grow"] * 5)
