"""The canonical text of a rule file: same tree, same comments; a second run changes nothing.

A block of one statement stays on one line if it fits and holds no comment; so does a list of rule
names. Every other block has one statement on each line. Of the blank lines in a block, one before a
comment and one after it stay.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..text.parse import parse
from ..tree import tree as t
from . import program, rule  # noqa: F401  these register the form of each statement
from .comments import Comments, Notes, attach
from .item import Block, Item, item
from .layout import WIDTH, lay_out, row

INDENT = 2


def format_text(text: str, name: str = "<text>") -> str:
    """Parse and format. Raises `LissomError` for text that is not the language."""
    return format_file(parse(text, name), text)


def format_file(file: t.File, source_text: str = "") -> str:
    """Canonical text of `file`; comments come from `source_text`, which it was parsed from."""
    items = tuple(map(item, file.statements))
    comments = attach(items, source_text.removeprefix("\ufeff"))
    lines: list[str] = []
    previous: Item | None = None
    for current in items:
        if lines and not _sticks(previous, current, comments):
            lines.append("")
        lines += _statement(current, 0, comments)
        previous = current
    closing = list(_own_lines(comments.at_end, 0, last=False))
    return "".join(f"{line}\n" for line in lines + [""] * bool(lines and closing) + closing)


def _sticks(previous: Item | None, current: Item, comments: Comments) -> bool:
    """Whether no blank line parts the two: one-line `use` and `extern` statements form a list."""
    if previous is None or type(previous.node) is not type(current.node):
        return False
    return isinstance(current.node, t.Use | t.Extern) and not comments.of(current).before


def _statement(current: Item, indent: int, comments: Comments) -> list[str]:
    notes = comments.of(current)
    lines = list(_own_lines(notes.before, indent))
    lines += _body(current, indent, comments)
    if notes.after:
        lines[-1] += f"  {notes.after.text}"
    return lines


def _body(current: Item, indent: int, comments: Comments) -> list[str]:
    if not isinstance(current, Block):
        return lay_out(current.doc, indent)
    if current.inline and not comments.inside(current) and indent + len(current.flat) <= WIDTH:
        return [" " * indent + current.flat]
    return _block(current, indent, comments)


def _block(block: Block, indent: int, comments: Comments) -> list[str]:
    notes = comments.of(block)
    lines = lay_out(block.opening, indent)
    if notes.head:
        lines[-1] += f"  {notes.head.text}"
    inside: list[str] = []
    for current in block.items:
        parted = current is block.spaced or _parted(comments.of(current).before)
        inside += _below(inside, _statement(current, indent + INDENT, comments), parted)
    closing = list(_own_lines(notes.end, indent + INDENT, last=False))
    inside += _below(inside, closing, _parted(notes.end))
    first, *more = lay_out(row("}", block.tail), indent)
    return [*lines, *inside, first, *more]


def _parted(notes: Notes) -> bool:
    return bool(notes) and notes[0].blank_before


def _below(above: list[str], lines: list[str], parted: bool) -> list[str]:
    """Lines of a block, with the blank line that parts them from those above, if there are any."""
    return ["", *lines] if parted and above else lines


def _own_lines(notes: Notes, indent: int, last: bool = True) -> Iterator[str]:
    """Comments on lines of their own, with the blank lines that part them from what follows."""
    for index, comment in enumerate(notes):
        yield " " * indent + comment.text
        if comment.blank_after and (last or index < len(notes) - 1):
            yield ""
