"""Canonical form of each statement: one document, or a block of further statements."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, singledispatch

from . import tree as t
from .format_expr import comma_list, doc, expression, quoted
from .layout import Bracket, Doc, Overhang, Text, row
from .lex import SOMETIMES

ALIGNED = 50
"""Guards wider than this take no part in the alignment of the messages of their block."""

_CODE = re.compile(r"[A-Z][0-9]{3}")


@dataclass(frozen=True, eq=False)
class Item:
    """A statement that is one document."""

    node: t.Node
    doc: Doc

    @property
    def flat(self) -> str:
        return self.doc.flat


@dataclass(frozen=True, eq=False)
class Block(Item):
    """A statement with a block: `doc` stands before its `{`, a blank line before `spaced`."""

    items: tuple[Item, ...]
    inline: bool
    spaced: Item | None = None

    @cached_property
    def flat(self) -> str:  # type: ignore[override]
        inside = "; ".join(item.flat for item in self.items)
        return f"{self.doc.flat} {{ {inside} }}" if inside else f"{self.doc.flat} {{ }}"

    @property
    def opening(self) -> Doc:
        return row(self.doc, " {")


@singledispatch
def item(node: t.Node) -> Item:
    raise TypeError(f"no text for {type(node).__name__}")


def _line(node: t.Node, *parts: Doc | str) -> Item:
    return Item(node, row(*parts))


def _block(
    node: t.Node, head: Doc | str, nodes: Sequence[t.Node], inline: bool | None = None
) -> Block:
    """A block that may stay on one line where it holds one statement; `inline` overrides that."""
    items = tuple(map(item, nodes))
    return Block(node, row(head), items, len(items) <= 1 if inline is None else inline)


def _formals(params: tuple[t.Param, ...]) -> Doc:
    return Bracket("(", tuple(map(doc, params)), ")")


def _results(results: tuple[t.Type, ...]) -> Doc:
    return doc(results[0]) if len(results) == 1 else Bracket("(", tuple(map(doc, results)), ")")


def _targets(words: tuple[t.Word, ...]) -> Doc:
    return doc(words[0]) if len(words) == 1 else Bracket("(", tuple(map(doc, words)), ")")


def _maybe(lead: str, node: t.Word | None) -> str:
    return f"{lead}{node}" if node else ""


def _if_given(lead: str, expr: t.Expr | None) -> Doc:
    return row(lead, expression(expr)) if expr else Text("")


def _words(lead: str, words: Iterable[t.Word]) -> Doc:
    return comma_list(lead, tuple(words))


# -- declarations --------------------------------------------------------------------------------


@item.register
def _(node: t.Use) -> Item:
    path = ".".join(word.text for word in node.path)
    return _line(node, f"use {path}", "" if node.version is None else f" {node.version}")


@item.register
def _(node: t.Extern) -> Item:
    result = _results(node.results)
    pure = " pure" if node.pure else ""
    return _line(node, f"extern fn {node.name}", _formals(node.params), " -> ", result, pure)


@item.register
def _(node: t.Op) -> Item:
    head = row(f"op {node.name}", _formals(node.inputs), " -> ", _results(node.results))
    return _block(node, head, node.items)


@item.register
def _(node: t.OpParam) -> Item:
    return _line(node, f"param {node.name}{'?' * node.optional}: ", doc(node.type))


@item.register
def _(node: t.OpAttr) -> Item:
    return _line(node, f"attr {node.name}: ", doc(node.type), " = ", expression(node.default))


@item.register
def _(node: t.OpDim) -> Item:
    return _line(node, f"dim {node.name} = ", expression(node.value))


@item.register
def _(node: t.OpCost) -> Item:
    return _line(node, f"cost {node.name} = ", expression(node.value))


@item.register
def _(node: t.OpTrait) -> Item:
    return _line(node, _words("trait ", node.names))


@item.register
def _(node: t.OpMeaning) -> Item:
    return _line(node, "meaning ", doc(node.signature))


@item.register
def _(node: t.OpSpelling) -> Item:
    return _line(node, "spelling ", doc(node.signature))


# -- rules ---------------------------------------------------------------------------------------


@item.register
def _(node: t.Rule) -> Item:
    formals = _formals(node.params) if node.params else ""
    head = row(f"{node.kind} rule {node.name}", formals)
    return _block(node, head, node.clauses, inline=not node.clauses)


@item.register
def _(node: t.Doc) -> Item:
    return _line(node, f"doc {quoted(node.text)}")


@item.register
def _(node: t.Priority) -> Item:
    return _line(node, f"priority {node.value}")


@item.register
def _(node: t.Recursive) -> Item:
    return _line(node, "recursive decreasing ", expression(node.measure))


@item.register
def _(node: t.OnShared) -> Item:
    return _line(node, f"on_shared {node.policy}")


@item.register
def _(node: t.Match) -> Item:
    return _block(node, f"match{_maybe(' ', node.name)}", node.patterns)


@item.register
def _(node: t.Unless) -> Item:
    return _block(node, "unless", node.patterns)


@item.register
def _(node: t.MatchDim) -> Item:
    return _line(node, f"match dim {node.dim} in {node.domain}")


@item.register
def _(node: t.MatchParam) -> Item:
    return _line(node, f"match param {node.name} of ", doc(node.ops))


@item.register
def _(node: t.MatchValue) -> Item:
    sites = ", ".join(map(quoted, node.sites))
    return _line(node, f"match value {node.name} : ", doc(node.type), f" at {sites}")


@item.register
def _(node: t.OpPattern) -> Item:
    arguments = Bracket("(", tuple(map(doc, (*node.operands, *node.attrs))), ")")
    lead = row("shared " if node.shared else "", _targets(node.targets), " = ")
    return _line(node, lead, doc(node.ops), node.repeat, arguments, _maybe(" as ", node.handle))


@item.register
def _(node: t.ShapePattern) -> Item:
    return _line(node, doc(node.path), " : ", doc(node.type))


@item.register
def _(node: t.SitePattern) -> Item:
    return _line(node, f"in {node.name} : {quoted(node.glob)}")


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
        return _line(node, "?")
    condition = expression(node.condition)
    if node.reason is None:
        return Item(node, condition)
    padding = " " * max(0, column - len(condition.flat))
    return _line(node, condition, Overhang(f"{padding}  else {quoted(node.reason)}"))


@item.register
def _(node: t.Let) -> Item:
    return _block(node, "let", node.bindings)


@item.register
def _(node: t.Binding) -> Item:
    return _line(node, _targets(node.targets), " = ", expression(node.value))


@item.register
def _(node: t.Perturb) -> Item:
    return _block(node, "perturb", node.moves)


@item.register
def _(node: t.Assign) -> Item:
    return _line(node, doc(node.path), " := ", expression(node.value))


@item.register
def _(node: t.Effect) -> Item:
    return Item(node, expression(node.call))


@item.register
def _(node: t.Rewrite) -> Item:
    return _block(node, "rewrite", node.steps)


@item.register
def _(node: t.Build) -> Item:
    tail = _maybe(" as ", node.handle) + _maybe(" from ", node.origin)
    return _line(node, _targets(node.targets), " = ", expression(node.value), tail)


@item.register
def _(node: t.Store) -> Item:
    return _line(node, f"store {node.name} as ", expression(node.value))


@item.register
def _(node: t.Attach) -> Item:
    return _line(node, "attach ", expression(node.observer), f" on {node.on} as {node.path}")


@item.register
def _(node: t.Exit) -> Item:
    return _line(node, f"exit {node.name} when ", expression(node.condition))


@item.register
def _(node: t.Train) -> Item:
    return _line(node, _words("train { ", node.names), " }" if node.names else "train { }")


@item.register
def _(node: t.Ensure) -> Item:
    return _block(node, "ensure", node.items)


@item.register
def _(node: t.Claim) -> Item:
    condition = expression(node.condition)
    opening = condition.flat.split("(")[0].rstrip()
    if opening in SOMETIMES["ensure"] and opening != condition.flat:
        condition = Bracket("(", (condition,), ")")
    within, data = _if_given(" within ", node.within), _maybe(" on ", node.data)
    return _line(node, condition, within, data)


@item.register
def _(node: t.Fact) -> Item:
    return _line(node, _words(f"{node.kind} ", node.names))


# -- pipelines and tests -------------------------------------------------------------------------


@item.register
def _(node: t.Pipeline) -> Item:
    """A blank line parts the settings at the top from the first stage."""
    formals = _formals(node.params) if node.params else ""
    items = tuple(map(item, node.items))
    first = next((i for i in items if isinstance(i, Block)), None)
    spaced = first if items and first is not items[0] else None
    head = row(f"pipeline {node.name}", formals)
    return Block(node, head, items, not items, spaced)


@item.register
def _(node: t.Input) -> Item:
    return _line(node, f"input {node.name} : ", doc(node.type))


@item.register
def _(node: t.Data) -> Item:
    return _line(node, f"data {node.name} = ", expression(node.value))


@item.register
def _(node: t.Budget) -> Item:
    return _line(node, "budget ", expression(node.condition), _maybe(" on ", node.data))


@item.register
def _(node: t.Stage) -> Item:
    return _block(node, f"stage {node.name}", node.steps, inline=not node.steps)


@item.register
def _(node: t.Recover) -> Item:
    return _block(node, f"recover {node.name}", node.settings, inline=not node.settings)


@item.register
def _(node: t.Verify) -> Item:
    return _block(node, "verify", node.items, inline=not node.items)


@item.register
def _(node: t.OnFail) -> Item:
    return _line(node, f"on_fail {node.policy}")


@item.register
def _(node: t.Mode) -> Item:
    return _line(node, f"mode {node.name}")


@item.register
def _(node: t.Once) -> Item:
    return _line(node, comma_list("once ", node.refs))


@item.register
def _(node: t.Fixpoint) -> Item:
    limit = "" if node.limit is None else f" max {node.limit}"
    return _block(node, f"fixpoint{limit}", node.refs, inline=True)


@item.register
def _(node: t.Ref) -> Item:
    return Item(node, doc(node))


@item.register
def _(node: t.Each) -> Item:
    order, until = _if_given(" order by ", node.order), _if_given(" until ", node.until)
    return _line(node, "each ", doc(node.ref), order, until)


@item.register
def _(node: t.First) -> Item:
    return _block(node, "first", node.steps)


@item.register
def _(node: t.Try) -> Item:
    return _block(node, "try", node.steps)


@item.register
def _(node: t.Calibrate) -> Item:
    return _line(node, f"calibrate {node.data}")


@item.register
def _(node: t.Test) -> Item:
    return _block(node, f"test {node.name}", node.cases)


@item.register
def _(node: t.Fires) -> Item:
    return _line(node, f"fires {node.rule} on ", expression(node.model))


@item.register
def _(node: t.Silent) -> Item:
    reason = node.because or ""
    because = reason if _CODE.fullmatch(reason) else quoted(reason)
    tail = "" if node.because is None else f" because {because}"
    return _line(node, f"silent {node.rule} on ", expression(node.model), Overhang(tail))


@item.register
def _(node: t.Check) -> Item:
    return _line(node, "check ", expression(node.condition))
