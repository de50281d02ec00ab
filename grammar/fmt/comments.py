"""Finds the comments of a text, which the grammar drops, and gives each one to a statement."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .item import Block, Item

_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|#[^\n]*|\{')
_BLANK_LINE = re.compile(r"[^\S\n]*\n[^\S\n]*\n")


@dataclass(frozen=True)
class Comment:
    start: int
    text: str
    own_line: bool
    """Whether nothing but space stands before it on its line."""
    blank_before: bool
    """Whether an empty line parts it from what stands above; only for one on its own line."""
    blank_after: bool


Notes = Sequence[Comment]


@dataclass
class Around:
    """The comments of one statement: before it, at its end, after its `{`, before its `}`."""

    before: list[Comment] = field(default_factory=list)
    after: Comment | None = None
    head: Comment | None = None
    end: list[Comment] = field(default_factory=list)


class Comments:
    """What was attached to which statement."""

    def __init__(self) -> None:
        self.at_end: list[Comment] = []
        self._around: dict[int, Around] = {}

    def of(self, item: Item) -> Around:
        return self._around.get(id(item), Around())

    def at(self, item: Item) -> Around:
        return self._around.setdefault(id(item), Around())

    def inside(self, block: Block) -> bool:
        """Whether a comment stands between the braces of the block."""
        around = self.of(block)
        return bool(around.head or around.end) or any(map(self._anywhere, block.items))

    def _anywhere(self, item: Item) -> bool:
        around = self.of(item)
        inside = isinstance(item, Block) and self.inside(item)
        return bool(around.before or around.after) or inside


def attach(items: Sequence[Item], text: str) -> Comments:
    """Give each comment to the statement on its line, the one after it, or the block's end."""
    comments = Comments()
    found = list(_scan(text))
    braces = [start for start, comment in found if comment is None]
    for _, comment in found:
        if comment is not None:
            _place(comment, None, items, _Text(text, braces), comments)
    return comments


@dataclass(frozen=True)
class _Text:
    text: str
    braces: list[int]

    def same_line(self, start: int, end: int) -> bool:
        return self.text.rfind("\n", 0, end) < start

    def brace_of(self, block: Block) -> int:
        """Where the block opens: heads hold no braces, so it is the first one from its start."""
        return self.braces[bisect_left(self.braces, block.node.span.start)]


def _scan(text: str) -> Iterator[tuple[int, Comment | None]]:
    """The comments and opening braces outside of strings."""
    for found in _TOKEN.finditer(text):
        if found.group() == "{":
            yield found.start(), None
        if found.group().startswith("#"):
            yield found.start(), _comment(text, found)


def _comment(text: str, found: re.Match[str]) -> Comment:
    line_start = text.rfind("\n", 0, found.start()) + 1
    own_line = not text[line_start : found.start()].strip(" \t;")
    above = text[text.rfind("\n", 0, max(0, line_start - 1)) + 1 : line_start]
    blank_before = own_line and bool(above) and not above.strip()
    blank_after = _BLANK_LINE.match(text, found.end()) is not None
    return Comment(found.start(), found.group().rstrip(), own_line, blank_before, blank_after)


def _place(
    comment: Comment, block: Block | None, items: Sequence[Item], text: _Text, comments: Comments
) -> None:
    """Descend to the innermost block that holds the comment, then look at its neighbours there."""
    count = bisect_right(items, comment.start, key=lambda item: item.node.span.start)
    before = items[count - 1] if count else None
    if before is None or before.node.span.end <= comment.start:
        _beside(comment, block, items, count, text, comments)
    elif isinstance(before, Block) and text.brace_of(before) < comment.start:
        _place(comment, before, before.items, text, comments)
    else:
        comments.at(before).before.append(comment)


def _beside(
    comment: Comment,
    block: Block | None,
    items: Sequence[Item],
    count: int,
    text: _Text,
    comments: Comments,
) -> None:
    """The comment stands between statements: `count` of the block's items are before it."""
    on_line = not comment.own_line
    if on_line and count and text.same_line(items[count - 1].node.span.end, comment.start):
        comments.at(items[count - 1]).after = comment
    elif on_line and block and text.same_line(text.brace_of(block), comment.start):
        comments.at(block).head = comment
    elif count < len(items):
        comments.at(items[count]).before.append(comment)
    else:
        (comments.at(block).end if block else comments.at_end).append(comment)
