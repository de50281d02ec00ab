"""Text of rule files as Markdown: comments, reasons, code. Nothing in it is taken for markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from textwrap import dedent

_CODE_SPAN = re.compile(r"(`[^`\n]+`)")
_ARXIV = re.compile(r"\barXiv:(\d{4}\.\d{4,5})(?:v\d+)?\b")
_MARKS = re.compile(r"[\\`*\[<&~$]|(?<!\w)_|_(?!\w)")
_OPENING = re.compile(r"(?=[#+=>-])|\d+(?=[.)]\s)")
"""Before what follows this, a heading, a list or a quotation would begin."""

_HOLE = re.compile(r"\{([^{}]*)\}")
INDENTED = 3
"""A comment line with as many blanks more than the usual one is a formula."""


def prose(text: str) -> str:
    """Plain text with `code` in it; numbers of arXiv become links."""
    parts = _CODE_SPAN.split(" ".join(text.split()))
    shown = "".join(part if index % 2 else _plain(part) for index, part in enumerate(parts))
    opening = _OPENING.match(shown)
    return f"{shown[: opening.end()]}\\{shown[opening.end() :]}" if opening else shown


def _plain(text: str) -> str:
    escaped = _MARKS.sub(lambda found: f"\\{found.group()}", text)
    return _ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", escaped)


def reason(text: str) -> str:
    """The message of a guard; what stands in braces there is filled in for each site."""
    parts = _HOLE.split(text)
    return "".join(code(part) if index % 2 else _plain(part) for index, part in enumerate(parts))


def code(text: str) -> str:
    """A code span, whatever stands in it."""
    flat = " ".join(text.split())
    ticks = _fence(flat, 1)
    blank = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{blank}{flat}{blank}{ticks}"


def code_block(text: str, language: str = "") -> str:
    """A fenced code block, whatever stands in it."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _fence(text: str, least: int) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * (longest + 1 if longest >= least else least)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are Markdown; a bar in one of them does not end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# -- comments --------------------------------------------------------------------------------------


def header_comment(text: str, start: int) -> list[str]:
    """The comment that opens a file, without its marks. `start`: where the first statement begins;
    a part that touches it belongs to the statement, unless that part is all there is.
    """
    return _split(text, start)[0]


def comment_above(text: str, start: int) -> list[str]:
    """The comment lines that touch the statement at `start`, without their marks."""
    return _split(text, start)[1]


def _split(text: str, start: int) -> tuple[list[str], list[str]]:
    """What stands before a statement: all but the comment that touches it, and that comment."""
    lines = [line.strip("\ufeff \t") for line in text[:start].splitlines()]
    touching = list(takewhile(lambda line: line.startswith("#"), reversed(lines)))
    rest, own = lines[: len(lines) - len(touching)], lines[len(lines) - len(touching) :]
    above, below = (own, []) if not any(rest) else (rest, own)
    return list(map(_bare, above)), list(map(_bare, below))


def _bare(line: str) -> str:
    return line.removeprefix("#").removeprefix(" ")


def comment_markdown(lines: Sequence[str]) -> str:
    """Paragraphs, lists whose items begin with `- `, and formulas, which are indented."""
    return "\n\n".join(_part(kind, part) for kind, part in _parts(lines))


def _parts(lines: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for kind, group in groupby(_kinds(lines), key=lambda found: found[0]):
        if kind:
            yield kind.partition(" ")[0], [line for _, line in group]


def _kinds(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each line with the kind of its block and the block's number; `""` for empty lines."""
    kind, number = "", 0
    for line in lines:
        found = _kind(line, kind)
        number += found != kind
        kind = found
        yield (f"{kind} {number}" if kind else ""), line


def _kind(line: str, before: str) -> str:
    if not line.strip():
        return ""
    if line.startswith(" " * INDENTED):
        return "formula"
    if line.startswith("- "):
        return "list"
    return "list" if before == "list" and line.startswith("  ") else "text"


def _part(kind: str, lines: Sequence[str]) -> str:
    if kind == "formula":
        return code_block(dedent("\n".join(lines)), "text")
    if kind == "text":
        return prose(" ".join(lines))
    items = "\n".join(lines).removeprefix("- ").split("\n- ")
    return "\n".join(f"- {prose(item)}" for item in items)


def first_sentence(lines: Sequence[str]) -> str:
    """The first sentence of a comment, as Markdown; empty if it opens with a formula."""
    kind, part = next(_parts(lines), ("", []))
    if kind != "text":
        return ""
    return prose(re.split(r"(?<=[.!?])\s", " ".join(part), maxsplit=1)[0])
