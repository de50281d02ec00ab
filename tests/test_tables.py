"""The stored parser tables are those of the grammar, and the grammar is unambiguous."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from lark import Lark
from lark.exceptions import GrammarError

from lissom.grammar import tables


def table_of(parser: Lark) -> Any:
    return parser.parser.parser._parse_table


def differences(ours: Lark, theirs: Lark) -> list[str]:
    """Walk both tables in step from the start state; the numbers of their states need not agree."""
    left, right = table_of(ours), table_of(theirs)
    start = (left.start_states["file"], right.start_states["file"])
    partner, waiting, found = dict([start]), deque([start]), []
    while waiting:
        a, b = waiting.popleft()
        if left.states[a].keys() != right.states[b].keys():
            found.append(f"state {a}: other tokens")
            continue
        for token, (action, target) in left.states[a].items():
            other_action, other = right.states[b][token]
            if action.name != other_action.name:
                found.append(f"state {a}, {token}: other action")
            elif action.name == "Reduce" and _rule(target) != _rule(other):
                found.append(f"state {a}, {token}: {target} or {other}")
            elif action.name == "Shift" and target not in partner:
                partner[target] = other
                waiting.append((target, other))
    return found


def _rule(rule: Any) -> str:
    return json.dumps(rule.serialize(), sort_keys=True)


@pytest.fixture(scope="module")
def built() -> Lark:
    return tables.build()


def test_the_grammar_has_no_conflict_and_no_colliding_words() -> None:
    """In strict mode lark refuses what it otherwise decides on its own."""
    assert tables.build(strict=True)


def test_strict_mode_would_refuse_an_ambiguous_grammar() -> None:
    with pytest.raises(GrammarError):
        Lark('start: a | b\na: "x"\nb: "x"\n', parser="lalr", strict=True)


def test_the_stored_tables_are_up_to_date(built: Lark) -> None:
    """After a change of the grammar: python -m lissom.grammar.tables."""
    stored = tables.load()
    assert stored.source_path == "<deserialized>", "the tables are stale"
    assert differences(stored, built) == []
    assert [(t.name, str(t.pattern), t.priority) for t in stored.terminals] == [
        (t.name, str(t.pattern), t.priority) for t in built.terminals
    ]
    assert stored.options.maybe_placeholders
    assert stored.options.propagate_positions


def test_a_difference_would_be_seen(built: Lark) -> None:
    changed = tables.build()
    states = table_of(changed).states
    state = next(s for s, actions in states.items() if "PLUS" in actions and "MINUS" in actions)
    del states[state]["PLUS"]
    assert differences(changed, built) != []


@pytest.mark.parametrize("stored", [None, '{"stamp":"of another grammar"}'])
def test_absent_or_stale_tables_are_not_used(
    stored: str | None, built: Lark, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tables._read
    monkeypatch.setattr(
        tables, "_read", lambda name: stored if name == tables.TABLES else read(name)
    )
    parser = tables.load()
    assert parser.source_path != "<deserialized>"
    assert differences(parser, built) == []


def test_the_stamp_depends_on_grammar_and_lark(monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = tables.stamp()
    monkeypatch.setattr(tables.lark, "__version__", "0.0.0")
    assert tables.stamp() != stamp
    monkeypatch.undo()
    monkeypatch.setattr(tables, "_read", lambda name: "file: NAME")
    assert tables.stamp() != stamp


def test_the_tables_can_be_written(tmp_path: Path) -> None:
    tables.write(tmp_path / "tables.json")
    assert (tmp_path / "tables.json").read_text().count("\n") == 1
