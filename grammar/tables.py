"""The LALR tables of the grammar, kept as data beside it so that no start has to compute them.

`python -m lissom.grammar.tables` writes `tables.json` anew after a change of `lissom.lark`. Tables
of another grammar or another release of lark are not used: the parser is then built from the
grammar, which takes longer and gives the same parser.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lark
from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

from .lex import PostLexer

GRAMMAR = "lissom.lark"
TABLES = "tables.json"


def load() -> Lark:
    """The parser, from the tables if they are those of this grammar and this lark."""
    stored = _read(TABLES)
    if stored is None:
        return build()
    tables = json.loads(stored, object_hook=_integer_keys)
    if tables["stamp"] != stamp():
        return build()
    # The entry that lark's own stand-alone generator uses; the stamp pins the release.
    return Lark._load_from_dict(tables["data"], tables["memo"], postlex=PostLexer())


def build(strict: bool = False) -> Lark:
    """The parser, from the grammar; `strict` refuses ambiguities (needs interegular)."""
    return Lark(
        _read(GRAMMAR) or "",
        parser="lalr",
        lexer="basic",
        start="file",
        propagate_positions=True,
        maybe_placeholders=True,
        postlex=PostLexer(),
        strict=strict,
    )


def stamp() -> str:
    """What the tables depend on: the text of the grammar and the release of lark."""
    text = f"{lark.__version__}\n{_read(GRAMMAR)}"
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path) -> None:
    """Compute the tables and write them as JSON."""
    data, memo = build().memo_serialize([TerminalDef, Rule])
    data["options"]["postlex"] = None
    tables = {"stamp": stamp(), "data": data, "memo": memo}
    path.write_text(json.dumps(tables, separators=(",", ":")) + "\n", "utf-8")


def _read(name: str) -> str | None:
    path = Path(__file__).with_name(name)
    return path.read_text("utf-8") if path.is_file() else None


def _integer_keys(found: dict[str, Any]) -> dict[Any, Any]:
    """JSON turns the numbers of states and tokens into strings; names never start with a digit."""
    if next(iter(found), "").isdigit():
        return {int(key): value for key, value in found.items()}
    return found


if __name__ == "__main__":
    write(Path(__file__).with_name(TABLES))
