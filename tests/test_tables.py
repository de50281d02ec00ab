"""The stored tables are those of the grammar, which is unambiguous; they run as lark runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lark
import pytest
from lark.exceptions import GrammarError

from lissom.grammar.diagnostics import Source
from lissom.grammar.library.vocabulary import library_sources
from lissom.grammar.text import tables
from lissom.grammar.text.lalr import BadCharacter, BadToken, Parser, Token
from lissom.grammar.text.lex import statements

ROOT = Path(__file__).parent.parent
TEXTS = [
    *library_sources(),
    *(Source(p.name, p.read_text()) for p in ROOT.glob("examples/**/*.lissom")),
]


def as_data(found: tables.Tables) -> Any:
    return json.loads(json.dumps(asdict(found)))


@pytest.fixture(scope="module")
def computed() -> tables.Tables:
    return tables.compute(tables.build())


# -- the stored tables ---------------------------------------------------------------------------


def test_the_grammar_has_no_conflict_and_no_colliding_words() -> None:
    """In strict mode lark refuses what it otherwise decides on its own."""
    assert tables.build(strict=True)


def test_strict_mode_would_refuse_an_ambiguous_grammar() -> None:
    with pytest.raises(GrammarError):
        lark.Lark('start: a | b\na: "x"\nb: "x"\n', parser="lalr", strict=True)


def test_the_stored_tables_are_up_to_date(computed: tables.Tables) -> None:
    """After a change of the grammar: python -m lissom.grammar.text.tables."""
    assert as_data(tables.load_tables()) == as_data(computed)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_tables_do_not_depend_on_the_order_of_sets(seed: str, tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    code = f"""if True:
        from pathlib import Path
        from lissom.grammar.text import tables
        tables.write(Path({str(path)!r}))"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": seed}, cwd=ROOT)
    assert path.read_bytes() == (ROOT / "grammar" / tables.TABLES).read_bytes()


def test_stored_tables_are_read_without_lark() -> None:
    code = (
        "import sys; from lissom.grammar.text import tables; tables.load_tables();"
        "print('lark' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "False", run.stderr


@pytest.mark.parametrize("stored", [None, '{"stamp":1}'])
def test_absent_or_stale_tables_are_not_used(
    stored: str | None, computed: tables.Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tables._read
    monkeypatch.setattr(
        tables, "_read", lambda name: stored if name == tables.TABLES else read(name)
    )
    assert as_data(tables.load_tables()) == as_data(computed)


def test_the_stamp_depends_on_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = tables.stamp()
    monkeypatch.setattr(tables, "_read", lambda name: "file: NAME")
    assert tables.stamp() != stamp


# -- running them ----------------------------------------------------------------------------------


class Statements:
    """The post-lexer as lark wants it."""

    always_accept = ("_NEWLINE",)
    source: Source

    def process(self, stream: Iterator[lark.Token]) -> Iterator[lark.Token]:
        ours = (Token(t.type, str(t), t.start_pos or 0, t.end_pos or 0) for t in stream)
        for token in statements(self.source, ours):
            place = {"start_pos": token.start_pos, "end_pos": token.end_pos}
            yield lark.Token(
                token.type, str(token), **place, line=1, end_line=1, column=1, end_column=1
            )


@pytest.fixture(scope="module")
def theirs() -> tuple[lark.Lark, Statements]:
    postlex = Statements()
    grammar = (ROOT / "grammar" / tables.GRAMMAR).read_text()
    options: Any = {"parser": "lalr", "lexer": "basic", "start": "file", "postlex": postlex}
    return lark.Lark(grammar, propagate_positions=True, maybe_placeholders=True, **options), postlex


@pytest.fixture(scope="module")
def ours(computed: tables.Tables) -> Parser:
    def tree(name: str) -> Any:
        return lambda place, parts: (name, place, list(map(plain, parts)))

    names = {name for _, name, _, _ in computed.rules if name and not name.startswith("_")}
    return Parser(computed, {name: tree(name) for name in names})


def plain(node: Any) -> Any:
    """A tree of lark, or a part of ours, as tuples."""
    if isinstance(node, lark.Tree):
        place = (0, 0) if node.meta.empty else (node.meta.start_pos, node.meta.end_pos)
        return str(node.data), place, [plain(child) for child in node.children]
    return str(node) if isinstance(node, str) else node


@pytest.mark.parametrize("source", TEXTS, ids=lambda source: source.name)
def test_the_tree_is_the_one_that_lark_makes(
    source: Source, ours: Parser, theirs: tuple[lark.Lark, Statements]
) -> None:
    """Rules, their parts, absent parts and the range of every rule."""
    parser, postlex = theirs
    postlex.source = source
    tokens = ours.tokens(source.text, 0, len(source.text))
    assert ours.parse(statements(source, tokens)) == plain(parser.parse(source.text))


@pytest.mark.parametrize(
    "text",
    ["op", "extern fn f(", "test t { check 1 + }", "exact rule r { match { x = (a | } }", "1"],
)
def test_what_could_follow_is_what_lark_says(
    text: str, ours: Parser, theirs: tuple[lark.Lark, Statements]
) -> None:
    words = {"op": "_OP", "extern": "_EXTERN", "fn": "_FN", "test": "_TEST", "check": "_CHECK",
             "exact": "EXACT", "rule": "_RULE", "match": "_MATCH"}  # fmt: skip
    found = ours.tokens(text, 0, len(text))
    kinds = [Token(words.get(t, t.type), str(t), t.start_pos, t.end_pos) for t in found]
    with pytest.raises(BadToken) as error:
        ours.parse(kinds)
    assert error.value.accepts == accepted_by_lark(theirs[0], kinds)


def accepted_by_lark(parser: lark.Lark, tokens: list[Token]) -> set[str]:
    """What lark could go on with after the tokens, or where it cannot go on with one of them."""
    interactive = parser.parse_interactive()
    try:
        for token in tokens:
            interactive.feed_token(lark.Token(token.type, str(token)))
        interactive.feed_eof()
    except lark.UnexpectedToken:
        return interactive.accepts()
    raise AssertionError("lark accepts the text")


def test_a_text_without_a_token_says_where(ours: Parser) -> None:
    with pytest.raises(BadCharacter) as error:
        list(ours.tokens("op a ´", 0, 6))
    assert error.value.offset == 5
