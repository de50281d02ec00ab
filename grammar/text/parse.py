"""Text in, tree out. Every failure is a `LissomError`; hostile text is refused early."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import category

from ..diagnostics import SOURCE, Label, LissomError, Source, Span, fail
from ..tree.operators import OPS
from ..tree.tree import File
from . import tables
from .build import BuildRules
from .lalr import BadCharacter, BadToken, Callback, Parser, Token
from .lex import HARD, statements

MAX_BYTES = 1 << 20
_LONE_RETURN = re.compile(r"\r(?!\n)")
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a reader cannot see, or that change the order of what they see."""

_SHOWN = {
    "_END": "the end of the statement", "$END": "the end of the file", "NAME": "a name",
    "INT": "a number", "FLOAT": "a number", "FRAC": "a share like 30%", "STRING": "a string",
    "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "LBRACE": "`{`", "RBRACE": "`}`",
    "COMMA": "`,`", "COLON": "`:`", "EQUAL": "`=`", "DOT": "`.`", "COMPARE": "a comparison",
    "MINUS": "`-`", "PLUS": "`+`", "STAR": "`*`", "TIMES": "`/`", "POWER": "`^`",
    "__ANON_0": "`->`", "__ANON_1": "`:=`", "__ANON_2": "`..`",
    "OPTIONAL": "`?`", "ELLIPSIS": "`...`", "VBAR": "`|`",
}  # fmt: skip


def parse(text: str, name: str = "<text>") -> File:
    """The tree of a rule file. Raises `LissomError` with an E-code for any other text."""
    source = Source(name, text.removeprefix("\ufeff"))
    return parse_part(source, 0, len(source.text))


def parse_part(source: Source, start: int, end: int) -> File:
    """The tree of the statements in a part of a text; their places are those in the whole text."""
    _check_text(source, start, end)
    parser, token = _parser(), SOURCE.set(source)
    try:
        return parser.parse(statements(source, parser.tokens(source.text, start, end)))
    except BadCharacter as error:
        raise _bad_character(error.offset, source) from None
    except BadToken as error:
        raise _bad_token(error, source) from None
    finally:
        SOURCE.reset(token)


def parse_file(path: Path) -> File:
    """Read and parse a `.lissom` file."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a rule file; refuses what cannot be read, is too large or is not UTF-8."""
    place = Label(None, where=str(path))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _too_large(place)
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise fail("E006", f"cannot read `{path}`: {error.strerror}", place) from None
    except UnicodeDecodeError as error:
        note = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise fail("E004", "the file is not UTF-8", place, note=note) from None


@cache
def _parser() -> Parser:
    known, build = tables.load_tables(), BuildRules()
    methods = {name: getattr(build, name, None) for _, name, _, _ in known.rules}
    return Parser(known, {name: _callback(method) for name, method in methods.items() if method})


def _callback(method: Callable[[Span, list[Any]], Any]) -> Callback:
    return lambda place, parts: method(Span(SOURCE.get(), *place), parts)


def _check_text(source: Source, start: int, end: int) -> None:
    part = source.text[start:end]
    if len(part.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large(Label(None, where=source.name))
    found = _forbidden(part)
    if found is not None:
        place = Label(Span(source, start + found, start + found + 1), "here")
        message = f"the character U+{ord(part[found]):04X} may not stand in a rule file"
        raise fail("E004", message, place, help="delete it")


def _forbidden(text: str) -> int | None:
    """Where the first invisible character stands, other than tabs and line ends."""
    found = [text.find(c) for c in set(text) if category(c) in _INVISIBLE and c not in "\t\r\n"]
    lone = _LONE_RETURN.search(text)
    return min([*found, lone.start()] if lone else found, default=None)


def _too_large(place: Label) -> LissomError:
    return fail(
        "E002",
        f"the file is larger than {MAX_BYTES >> 20} MiB",
        place,
        help="split it and `use` the parts",
    )


def _bad_character(offset: int, source: Source) -> LissomError:
    place = Label(Span(source, offset, offset + 1))
    if source.text[offset] == '"':
        hint = 'a string ends on its own line with `"`; its escapes are \\" \\\\ \\n \\t'
        return fail("E005", "the string is never closed", place, help=hint)
    return fail(
        "E005",
        f"`{source.text[offset]}` is not part of the language",
        place,
        help=_CHARACTER_HELP.get(source.text[offset], ""),
    )


_CHARACTER_HELP = {
    "'": 'strings stand in double quotes: "..."',
    "%": "a share is written without a space: 30%; the remainder is `mod`",
    "!": "`!=` is the only use of `!`; negation is `not`",
    "&": "write `and`",
    "$": "names need no mark",
}  # fmt: skip


def _bad_token(error: BadToken, source: Source) -> LissomError:
    token = error.token
    place = Label(Span(source, token.start_pos, token.end_pos))
    expected = sorted({_SHOWN.get(t, f"`{t.strip('_').lower()}`") for t in error.accepts})
    found = (
        "the statement ends"
        if token.type in ("_END", "$END")
        else f"`{_short(token)}` is unexpected"
    )
    if not expected:
        return fail("E001", f"{found} here", place)
    return fail(
        "E001",
        f"{found} here",
        place,
        note=f"expected {_list(expected)}",
        help=_pattern_help(token, error.accepts) or _token_help(token, source),
    )


def _pattern_help(token: Token, accepts: Iterable[str]) -> str:
    """Help for `y = x + z` in a pattern, where only an op may follow the `=`."""
    name = (
        {**OPS, "^": "pow"}.get(token, "") if set(accepts) == {"LPAR", "OPTIONAL", "STAR"} else ""
    )
    return f"a pattern names ops: `{name}(x, z)`" if name else ""


def _token_help(token: Token, source: Source) -> str:
    start, end = token.start_pos, token.end_pos
    around = (source.text[max(0, start - 1) : end], source.text[start : end + 1], str(token))
    foreign = next((_FOREIGN[text] for text in around if text in _FOREIGN), "")
    if foreign or token.type == "EQUAL":
        return foreign or "`=` binds a name; to compare write `==`, to change a weight `:=`"
    if token in HARD or (token.type.startswith("_") and token.isidentifier()):
        return f"`{token}` is a reserved word; use another name"
    return ""


_FOREIGN = {
    "**": "a power is written `^`: x ^ 2",
    "||": "write `or`",
    "is": "compare with `==`; `known(c.bias)` asks whether a weight is there",
    "if": "a condition stands in `where`; an absent weight is `c.bias or 0`",
}
"""What other languages write; two tokens in a row may be one operator there."""


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _list(words: list[str]) -> str:
    shown = words[:6] + ([f"{len(words) - 6} more"] if len(words) > 6 else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
