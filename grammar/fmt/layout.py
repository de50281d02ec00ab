"""Lays text out on lines of at most 100 columns: what can break, and how a broken line goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

WIDTH = 100
HANG = 4
FAR_RIGHT = 24
"""What is in a bracket that opens right of this column goes on at the hanging indent instead."""


class Document:
    """Text with places to break. `head` is how much must stand on the line that it begins on."""

    @property
    def loose(self) -> bool:
        """Whether it breaks outside of its own brackets, where a line end would end a statement."""
        return False

    @property
    def flat(self) -> str:
        raise NotImplementedError

    @property
    def head(self) -> int:
        return len(self.flat)

    def broken(self, page: Page, tail: int) -> None:
        """Write over several lines; `tail` columns must stay free at the end of the last one."""
        page.write(self.flat)


@dataclass(frozen=True)
class Text(Document):
    text: str

    @property
    def flat(self) -> str:
        return self.text


@dataclass(frozen=True)
class Overhang(Text):
    """Unbreakable text that ends a statement: it may stand out, and breaks nothing before it."""

    @property
    def head(self) -> int:
        return 0


@dataclass(frozen=True)
class Joined(Document):
    """Parts that follow each other with no break between them."""

    parts: tuple[Document, ...]

    @cached_property
    def flat(self) -> str:
        return "".join(part.flat for part in self.parts)

    @cached_property
    def loose(self) -> bool:
        return any(part.loose for part in self.parts)

    @cached_property
    def head(self) -> int:
        return _head(self.parts, 0)

    def broken(self, page: Page, tail: int) -> None:
        for index, part in enumerate(self.parts):
            page.put(part, _head(self.parts[index + 1 :], tail))


@dataclass(frozen=True)
class Bracket(Document):
    """`name(item, item)`: items fill the lines, aligned under the first one."""

    open: str
    items: tuple[Document, ...]
    close: str

    @cached_property
    def flat(self) -> str:
        return self.open + ", ".join(item.flat for item in self.items) + self.close

    @property
    def head(self) -> int:
        return len(self.open) if self.items else len(self.flat)

    def broken(self, page: Page, tail: int) -> None:
        if not self.items:
            page.write(self.flat)
            return
        page.write(self.open)
        page.base_here()
        for index, item in enumerate(self.items):
            last = index == len(self.items) - 1
            after = len(self.close) + tail if last else 1
            page.fill(" " if index else "", item, after)
            page.write(self.close if last else ",")
        page.base_back()


@dataclass(frozen=True)
class Chain(Document):
    """`a + b + c`: breaks before its operators."""

    first: Document
    rest: tuple[tuple[str, Document], ...]

    @property
    def loose(self) -> bool:
        return True

    @cached_property
    def flat(self) -> str:
        return self.first.flat + "".join(f" {op} {doc.flat}" for op, doc in self.rest)

    @property
    def head(self) -> int:
        return self.first.head

    def broken(self, page: Page, tail: int) -> None:
        page.base_here(hang=False)
        page.put(self.first, 0)
        for index, (op, doc) in enumerate(self.rest):
            after = tail if index == len(self.rest) - 1 else 0
            page.fill(" ", Joined((Text(f"{op} "), doc)), after)
        page.base_back()


@dataclass(frozen=True)
class Wrapped(Document):
    """An expression outside of brackets: it gets parentheses only where it must break."""

    inner: Document

    @property
    def flat(self) -> str:
        return self.inner.flat

    @property
    def head(self) -> int:
        return 1

    def broken(self, page: Page, tail: int) -> None:
        page.write("(")
        page.put(self.inner, tail + 1)
        page.write(")")


def outside(doc: Document) -> Document:
    """The document of an expression that stands outside of all brackets."""
    return Wrapped(doc) if doc.loose else doc


def row(*parts: Document | str) -> Joined:
    return Joined(tuple(Text(part) if isinstance(part, str) else part for part in parts))


def _head(parts: Sequence[Document], tail: int) -> int:
    """Columns needed before the first place where a part, or what follows the parts, may break."""
    total = 0
    for part in parts:
        head = part.head
        total += head
        if head < len(part.flat):
            return total
    return total + tail


class Page:
    """The lines written so far, and the column at which a broken line goes on."""

    def __init__(self, indent: int) -> None:
        self.indent = indent
        self.lines: list[str] = [" " * indent]
        self.bases: list[int] = []

    @property
    def column(self) -> int:
        return len(self.lines[-1])

    def write(self, text: str) -> None:
        self.lines[-1] += text

    def put(self, doc: Document, tail: int) -> None:
        if self.fits(doc, tail):
            self.write(doc.flat)
        else:
            doc.broken(self, tail)

    def fits(self, doc: Document, tail: int) -> bool:
        return self.column + len(doc.flat) + tail <= WIDTH

    def fill(self, space: str, doc: Document, tail: int) -> None:
        """Stay on the line if the whole of `doc` fits there, else go on at the base column."""
        base = self.bases[-1]
        if self.column > base and self.column + len(space) + len(doc.flat) + tail > WIDTH:
            self.lines.append(" " * base)
        else:
            self.write(space)
        self.put(doc, tail)

    def base_here(self, hang: bool = True) -> None:
        far = hang and self.column > FAR_RIGHT
        self.bases.append(self.indent + HANG if far else self.column)

    def base_back(self) -> None:
        self.bases.pop()


def lay_out(doc: Document, indent: int) -> list[str]:
    """The lines of a document that begins at column `indent`."""
    page = Page(indent)
    page.put(doc, 0)
    return page.lines
