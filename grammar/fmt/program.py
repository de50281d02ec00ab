"""Canonical form of declarations, pipelines and tests."""

from __future__ import annotations

import re

from ..tree import tree as t
from .expr import comma_list, doc, expression, quoted
from .item import (
    Block,
    Item,
    block_of,
    formals,
    heading,
    if_given,
    item,
    line,
    maybe,
    results_doc,
    tall,
    word_list,
)
from .layout import Overhang, row

_CODE = re.compile(r"[A-Z][0-9]{3}")
_KEYWORD: dict[type[t.Node], str] = {
    t.OpTrait: "trait", t.OpMixes: "mixes", t.OpSums: "sums", t.OpDim: "dim", t.OpCost: "cost",
    t.OpMeaning: "meaning", t.OpSpelling: "spelling", t.Data: "data", t.First: "first",
    t.Try: "try",
}  # fmt: skip
"""How a statement begins that has its form in common with others."""


# -- declarations --------------------------------------------------------------------------------


@item.register
def _(node: t.Use) -> Item:
    path = ".".join(word.text for word in node.path)
    return line(node, f"use {path}", "" if node.version is None else f" {node.version}")


@item.register
def _(node: t.Extern) -> Item:
    result = results_doc(node.results)
    pure = " pure" if node.pure else ""
    return line(node, f"extern fn {node.name}", formals(node.params), " -> ", result, pure)


@item.register
def _(node: t.Op) -> Item:
    head = row(f"op {node.name}", formals(node.inputs), " -> ", results_doc(node.results))
    return block_of(node, head, node.items)


@item.register
def _(node: t.OpParam) -> Item:
    return line(node, f"param {node.name}{'?' * node.optional}: ", doc(node.type))


@item.register
def _(node: t.OpAttr) -> Item:
    return line(node, f"attr {node.name}: ", doc(node.type), " = ", expression(node.default))


@item.register
def _(node: t.OpDim | t.OpCost | t.Data) -> Item:
    return line(node, f"{_KEYWORD[type(node)]} {node.name} = ", expression(node.value))


@item.register
def _(node: t.OpTrait | t.OpMixes | t.OpSums) -> Item:
    return line(node, word_list(f"{_KEYWORD[type(node)]} ", node.names))


@item.register
def _(node: t.OpMeaning | t.OpSpelling) -> Item:
    return line(node, f"{_KEYWORD[type(node)]} ", doc(node.signature))


# -- pipelines and tests -------------------------------------------------------------------------


@item.register
def _(node: t.Pipeline) -> Item:
    """A blank line parts the settings at the top from the first stage."""
    items = tuple(map(item, node.items))
    first = next((i for i in items if isinstance(i, Block)), None)
    spaced = first if items and first is not items[0] else None
    head = heading(f"pipeline {node.name}", node.params)
    return Block(node, head, items, not items, spaced)


@item.register
def _(node: t.Input) -> Item:
    return line(node, f"input {node.name} : ", doc(node.type))


@item.register
def _(node: t.Budget) -> Item:
    return line(node, "budget ", expression(node.condition), maybe(" on ", node.data))


@item.register
def _(node: t.Stage) -> Item:
    return tall(node, f"stage {node.name}", node.steps)


@item.register
def _(node: t.Recover) -> Item:
    return tall(node, f"recover {node.name}", node.settings)


@item.register
def _(node: t.Until) -> Item:
    return line(node, "until ", expression(node.condition))


@item.register
def _(node: t.Repeat) -> Item:
    over = row("") if node.over is None else row(f" {node.name} in ", expression(node.over))
    limit = "" if node.limit is None else f" max {node.limit}"
    items, until = tuple(map(item, node.items)), if_given(" until ", node.until)
    return Block(node, row("repeat", over, limit), items, not items, tail=until)


@item.register
def _(node: t.Control) -> Item:
    return tall(node, f"control {node.name}", node.items)


@item.register
def _(node: t.Checkpoint) -> Item:
    return line(node, f"checkpoint {node.name}")


@item.register
def _(node: t.Rewind) -> Item:
    return line(node, "rewind ", expression(node.target))


@item.register
def _(node: t.ExitOn) -> Item:
    return line(node, f"exit on {node.data} until ", expression(node.condition))


@item.register
def _(node: t.Verify) -> Item:
    return tall(node, "verify", node.items)


@item.register
def _(node: t.OnFail) -> Item:
    return line(node, f"on_fail {node.policy}")


@item.register
def _(node: t.Mode) -> Item:
    return line(node, f"mode {node.name}")


@item.register
def _(node: t.Once) -> Item:
    return line(node, comma_list("once ", node.refs))


@item.register
def _(node: t.Fixpoint) -> Item:
    limit = "" if node.limit is None else f" max {node.limit}"
    return block_of(node, f"fixpoint{limit}", node.refs, inline=True)


@item.register
def _(node: t.Ref) -> Item:
    return Item(node, doc(node))


@item.register
def _(node: t.Each) -> Item:
    order, until = if_given(" order by ", node.order), if_given(" until ", node.until)
    return line(node, "each ", doc(node.ref), order, until)


@item.register
def _(node: t.First | t.Try) -> Item:
    return block_of(node, _KEYWORD[type(node)], node.steps)


@item.register
def _(node: t.Calibrate) -> Item:
    return line(node, f"calibrate {node.data}")


@item.register
def _(node: t.Test) -> Item:
    return block_of(node, f"test {node.name}", node.cases)


@item.register
def _(node: t.Fires) -> Item:
    return line(node, f"fires {node.rule} on ", expression(node.model))


@item.register
def _(node: t.Silent) -> Item:
    reason = node.because or ""
    because = reason if _CODE.fullmatch(reason) else quoted(reason)
    tail = "" if node.because is None else f" because {because}"
    return line(node, f"silent {node.rule} on ", expression(node.model), Overhang(tail))


@item.register
def _(node: t.Check) -> Item:
    return line(node, "check ", expression(node.condition))
