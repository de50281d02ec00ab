"""Canonical form of a statement: one document, or a block of further statements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, singledispatch

from ..tree import tree as t
from .expr import comma_list, doc, expression
from .layout import Bracket, Document, Text, row

NOTHING = Text("")


@dataclass(frozen=True, eq=False)
class Item:
    """A statement that is one document."""

    node: t.Node
    doc: Document

    @property
    def flat(self) -> str:
        return self.doc.flat


@dataclass(frozen=True, eq=False)
class Block(Item):
    """A statement with a block: `doc` stands before its `{`, `tail` behind its `}`, a blank line
    before `spaced`.
    """

    items: tuple[Item, ...]
    inline: bool
    spaced: Item | None = None
    tail: Document = NOTHING

    @cached_property
    def flat(self) -> str:  # type: ignore[override]
        inside = "; ".join(item.flat for item in self.items)
        body = f"{{ {inside} }}" if inside else "{ }"
        return f"{self.doc.flat} {body}{self.tail.flat}"

    @property
    def opening(self) -> Document:
        return row(self.doc, " {")


@singledispatch
def item(node: t.Node) -> Item:
    raise TypeError(f"no text for {type(node).__name__}")


def line(node: t.Node, *parts: Document | str) -> Item:
    return Item(node, row(*parts))


def block_of(
    node: t.Node, head: Document | str, nodes: Sequence[t.Node], inline: bool | None = None
) -> Block:
    """A block that may stay on one line where it holds one statement; `inline` overrides that."""
    items = tuple(map(item, nodes))
    return Block(node, row(head), items, len(items) <= 1 if inline is None else inline)


def tall(node: t.Node, head: Document | str, nodes: Sequence[t.Node]) -> Block:
    """A block that stands on one line only where it is empty."""
    return block_of(node, head, nodes, inline=not nodes)


def heading(lead: str, params: tuple[t.Param, ...]) -> Document:
    """What is declared under a name: no brackets where it takes no parameters."""
    return row(lead, formals(params) if params else "")


def formals(params: tuple[t.Param, ...]) -> Document:
    return Bracket("(", tuple(map(doc, params)), ")")


def results_doc(results: tuple[t.Type, ...]) -> Document:
    return doc(results[0]) if len(results) == 1 else Bracket("(", tuple(map(doc, results)), ")")


def targets_doc(words: tuple[t.Word, ...]) -> Document:
    return doc(words[0]) if len(words) == 1 else Bracket("(", tuple(map(doc, words)), ")")


def maybe(lead: str, node: t.Word | None) -> str:
    return f"{lead}{node}" if node else ""


def if_given(lead: str, expr: t.Expr | None) -> Document:
    return row(lead, expression(expr)) if expr else NOTHING


def word_list(lead: str, words: Iterable[t.Word]) -> Document:
    return comma_list(lead, tuple(words))
