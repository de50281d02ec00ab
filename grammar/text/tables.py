"""The LALR tables of the grammar, kept as data beside it so that no start has to compute them.

`python -m lissom.grammar.text.tables` writes `tables.json` anew after a change of `lissom.lark`:
lark reads the grammar and computes the tables, `lalr.py` runs them. lark is not loaded where the
stored tables are those of the grammar; otherwise they are computed, which takes longer.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lark import Lark
    from lark.grammar import Rule, Symbol

_HOME = Path(__file__).parents[1]
GRAMMAR = "lissom.lark"
TABLES = "tables.json"
START = "file"

Pick = int | list[int] | None
"""What a rule takes into its node: child i, the children of child [i], None for an absent part."""

Reduction = tuple[str, str, int, list[Pick] | None]
"""A rule: its symbol, its callback ("" if a single child stands for itself), its length, and what
it takes of it (None: all, as it is)."""


@dataclass(frozen=True)
class Tables:
    """Terminals in the order of their precedence; for each state, what a symbol leads to.

    A number from 0 is the next state; a negative one, `~rule`, is a rule to reduce by.
    """

    terminals: list[tuple[str, str]]
    ignored: list[str]
    states: list[dict[str, int]]
    rules: list[Reduction]
    start: int
    end: int


def load_tables() -> Tables:
    """The tables of the grammar: the stored ones, unless they are absent or of another grammar."""
    stored = _read(TABLES)
    found = None if stored is None else json.loads(stored)
    if found is None or found.pop("stamp") != stamp():
        return compute(build())
    return Tables(**found)


def stamp() -> int:
    """What the tables depend on: the text of the grammar."""
    return zlib.crc32((_read(GRAMMAR) or "").encode())


def build(strict: bool = False) -> Lark:
    """lark's own parser of the grammar; `strict` refuses ambiguities (needs interegular)."""
    from lark import Lark

    # Newlines stand in no rule; the post-lexer, which reads them, is what keeps the terminal.
    newlines: Any = SimpleNamespace(always_accept=("_NEWLINE",), process=iter)
    return Lark(
        _read(GRAMMAR) or "",
        parser="lalr",
        lexer="basic",
        start=START,
        postlex=newlines,
        maybe_placeholders=True,
        strict=strict,
    )


def compute(parser: Lark) -> Tables:
    """The tables that lark made, with states numbered in the order in which they are met."""
    lark: Any = parser.parser
    table, lexer = lark.parser._parse_table, lark.lexer.lexer
    assert lexer.scanner is not None
    assert not lexer.callback, "a word of the grammar collides with a pattern"
    number = _numbers(table.states, table.start_states[START])
    rules = {rule: index for index, rule in enumerate(parser.rules)}
    states = [_row(table.states[state], number, rules) for state in number]
    return Tables(
        [(t.name, t.pattern.to_regexp()) for t in lexer.terminals],
        sorted(lexer.ignore_types),
        states,
        [_reduction(rule) for rule in parser.rules],
        number[table.start_states[START]],
        number[table.end_states[START]],
    )


def write(path: Path) -> None:
    """Compute the tables and write them as JSON."""
    tables = {"stamp": stamp(), **asdict(compute(build()))}
    path.write_text(json.dumps(tables, separators=(",", ":")) + "\n", "utf-8")


def _numbers(states: dict[int, dict[str, Any]], start: int) -> dict[int, int]:
    """Breadth first by the names of symbols: the numbers do not depend on those of lark."""
    number, order = {start: 0}, [start]
    for state in order:
        for _, (action, target) in sorted(states[state].items()):
            if action.name == "Shift" and target not in number:
                number[target] = len(order)
                order.append(target)
    return number


def _row(actions: dict[str, Any], number: dict[int, int], rules: dict[Rule, int]) -> dict[str, int]:
    return {
        symbol: number[target] if action.name == "Shift" else ~rules[target]
        for symbol, (action, target) in sorted(actions.items())
    }


def _reduction(rule: Rule) -> Reduction:
    """How lark shapes the tree of a rule: its options, said as what to take of the children."""
    callback = rule.alias or rule.origin.name
    stands = rule.options.expand1 and not rule.alias
    size, picks = len(rule.expansion), _picks(rule)
    assert not stands or size == 1, "only a rule of one part can stand for it"
    whole = picks == list(range(size))
    return rule.origin.name, "" if stands else callback, size, None if whole else picks


def _picks(rule: Rule) -> list[Pick]:
    flags = rule.options.empty_indices or (False,) * len(rule.expansion)
    left = enumerate(rule.expansion)
    picks: list[Pick] = []
    for absent in flags:
        picks += [None] if absent else _pick(rule, *next(left))
    return picks


def _pick(rule: Rule, index: int, symbol: Symbol) -> list[Pick]:
    """The parts of rules named `_x` are parts of the rule they stand in; so are those of `a*`."""
    if symbol.is_term:
        dropped = getattr(symbol, "filter_out", False) and not rule.options.keep_all_tokens
        return [] if dropped else [index]
    return [[index]] if symbol.name.startswith("_") else [index]


def _read(name: str) -> str | None:
    path = _HOME / name
    return path.read_text("utf-8") if path.is_file() else None


if __name__ == "__main__":
    write(_HOME / TABLES)
