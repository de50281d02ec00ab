"""Canonical form of rules and their clauses."""

from __future__ import annotations

from collections.abc import Iterable

from ..text.lex import SOMETIMES
from ..tree import tree as t
from .expr import doc, expression, quoted
from .item import (
    Block,
    Item,
    block_of,
    heading,
    if_given,
    item,
    line,
    maybe,
    tall,
    targets_doc,
    word_list,
)
from .layout import Bracket, Overhang, Text, row

ALIGNED = 50
"""Guards wider than this take no part in the alignment of the messages of their block."""


@item.register
def _(node: t.Rule) -> Item:
    return tall(node, heading(f"{node.kind} rule {node.name}", node.params), node.clauses)


@item.register
def _(node: t.Doc) -> Item:
    return line(node, f"doc {quoted(node.text)}")


@item.register
def _(node: t.Priority) -> Item:
    return line(node, f"priority {node.value}")


@item.register
def _(node: t.Recursive) -> Item:
    return line(node, "recursive decreasing ", expression(node.measure))


@item.register
def _(node: t.OnShared) -> Item:
    return line(node, f"on_shared {node.policy}")


@item.register
def _(node: t.Match) -> Item:
    return block_of(node, f"match{maybe(' ', node.name)}", node.patterns)


@item.register
def _(node: t.Unless) -> Item:
    return block_of(node, "unless", node.patterns)


@item.register
def _(node: t.MatchDim) -> Item:
    return line(node, f"match dim {node.dim} in {node.domain}")


@item.register
def _(node: t.MatchParam) -> Item:
    return line(node, f"match param {node.name} of ", doc(node.ops))


@item.register
def _(node: t.MatchValue) -> Item:
    sites = ", ".join(map(quoted, node.sites))
    return line(node, f"match value {node.name} : ", doc(node.type), f" at {sites}")


@item.register
def _(node: t.OpPattern) -> Item:
    arguments = Bracket("(", tuple(map(doc, (*node.operands, *node.attrs))), ")")
    lead = row("shared " if node.shared else "", targets_doc(node.targets), " = ")
    return line(node, lead, doc(node.ops), node.repeat, arguments, maybe(" as ", node.handle))


@item.register
def _(node: t.ShapePattern) -> Item:
    return line(node, doc(node.path), " : ", doc(node.type))


@item.register
def _(node: t.SitePattern) -> Item:
    return line(node, f"in {node.name} : {quoted(node.glob)}")


@item.register
def _(node: t.Where) -> Item:
    """The messages of one block stand under each other."""
    items = tuple(map(_guard, node.guards, [_column(node.guards)] * len(node.guards)))
    return Block(node, Text("where"), items, len(items) <= 1)


def _column(guards: Iterable[t.Guard | t.Hole]) -> int:
    given = [g for g in guards if isinstance(g, t.Guard) and g.reason is not None]
    widths = [len(expression(guard.condition).flat) for guard in given]
    return max((width for width in widths if width <= ALIGNED), default=0)


def _guard(node: t.Guard | t.Hole, column: int) -> Item:
    if isinstance(node, t.Hole):
        return line(node, "?")
    condition = expression(node.condition)
    if node.reason is None:
        return Item(node, condition)
    padding = " " * max(0, column - len(condition.flat))
    return line(node, condition, Overhang(f"{padding}  else {quoted(node.reason)}"))


@item.register
def _(node: t.Let) -> Item:
    return block_of(node, "let", node.bindings)


@item.register
def _(node: t.Binding) -> Item:
    return line(node, targets_doc(node.targets), " = ", expression(node.value))


@item.register
def _(node: t.Perturb) -> Item:
    return block_of(node, "perturb", node.moves)


@item.register
def _(node: t.Assign) -> Item:
    return line(node, doc(node.path), " := ", expression(node.value))


@item.register
def _(node: t.Effect) -> Item:
    return Item(node, expression(node.call))


@item.register
def _(node: t.Rewrite) -> Item:
    return block_of(node, "rewrite", node.steps)


@item.register
def _(node: t.Build) -> Item:
    tail = maybe(" as ", node.handle) + maybe(" from ", node.origin)
    return line(node, targets_doc(node.targets), " = ", expression(node.value), tail)


@item.register
def _(node: t.Store) -> Item:
    return line(node, f"store {node.name} as ", expression(node.value))


@item.register
def _(node: t.Attach) -> Item:
    return line(node, "attach ", expression(node.observer), f" on {node.on} as {node.path}")


@item.register
def _(node: t.Exit) -> Item:
    return line(node, f"exit {node.name} when ", expression(node.condition))


@item.register
def _(node: t.Train) -> Item:
    if node.constraints:
        return block_of(node, "train", (*node.names, *node.constraints), inline=True)
    return line(node, word_list("train { ", node.names), " }" if node.names else "train { }")


@item.register
def _(node: t.TrainAs) -> Item:
    start = if_given(" from ", node.start)
    return line(node, doc(node.path), " := ", expression(node.value), start)


@item.register
def _(node: t.Ensure) -> Item:
    return block_of(node, "ensure", node.items)


@item.register
def _(node: t.Claim) -> Item:
    condition = expression(node.condition)
    opening = condition.flat.split("(")[0].rstrip()
    if opening in SOMETIMES["ensure"] and opening != condition.flat:
        condition = Bracket("(", (condition,), ")")
    within, data = if_given(" within ", node.within), maybe(" on ", node.data)
    return line(node, condition, within, data)


@item.register
def _(node: t.Fact) -> Item:
    return line(node, word_list(f"{node.kind} ", node.names))
