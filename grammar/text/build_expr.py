"""Builds expressions and types: one method for each rule of `lissom.lark` that makes a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..diagnostics import SOURCE, Label, Span, fail
from ..tree import tree as t
from .lalr import Token

MAX_DEPTH = 64
MAX_DIGITS = 18
MAX_DECIMAL = 40
Words = tuple[t.Word, ...]
Parts = list[Any]
"""The parts of one rule of the grammar: tokens, finished nodes, None for what is absent."""

_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


def word(token: Token) -> t.Word:
    return t.Word(str(token), span=token_span(token))


def token_span(token: Token) -> Span:
    return Span(SOURCE.get(), token.start_pos, token.end_pos)


def word_list(items: Sequence[Any]) -> tuple[t.Word, ...]:
    return tuple(word(item) for item in items if isinstance(item, Token))


def string_of(token: Token) -> str:
    out, escaped = [], False
    for char in str(token)[1:-1]:
        if escaped or char != "\\":
            out.append(_ESCAPES[char] if escaped else char)
            escaped = False
        else:
            escaped = True
    return "".join(out)


def integer_of(token: Token) -> int:
    return int(number_text(token, MAX_DIGITS))


def number_text(token: Token, most: int = MAX_DECIMAL) -> str:
    """The text of a number that is short enough to compute with and to print."""
    if len(token) > most:
        raise fail("E005", f"a number has at most {most} digits", Label(token_span(token)))
    return str(token)


def _depth(span: Span, *below: t.Node | None) -> int:
    depth = 1 + max((_depth_of(node) for node in below), default=0)
    if depth > MAX_DEPTH:
        place = Label(span, "too deep")
        raise fail(
            "E002",
            f"the expression is nested deeper than {MAX_DEPTH}",
            place,
            help="name parts of it in `let`",
        )
    return depth


def _depth_of(node: t.Node | None) -> int:
    if isinstance(node, t.Keyword):
        return node.value.depth
    if isinstance(node, t.Slice):
        return max((part.depth for part in (node.start, node.stop) if part), default=0)
    return node.depth if isinstance(node, t.Expr) else 0


def only(kind: type | tuple[type, ...], items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(item for item in items if isinstance(item, kind))


def collect(kind: Callable[..., t.Node]) -> Callable[..., t.Node]:
    """A callback for a rule whose node holds nothing but the tuple of its children."""
    return lambda self, span, c: kind(tuple(c), span=span)


def single_name(kind: Callable[..., t.Node]) -> Callable[..., t.Node]:
    """A callback for a rule whose node holds one name."""
    return lambda self, span, c: kind(word(c[0]), span=span)


class Expressions:
    """Expressions and types."""

    def name(self, span: Span, c: Parts) -> t.Expr:
        return t.Name(str(c[0]), span=span)

    def integer(self, span: Span, c: Parts) -> t.Expr:
        return t.Number(str(integer_of(c[0])), span=span)

    def float(self, span: Span, c: Parts) -> t.Expr:
        number = t.Number(number_text(c[0]), span=span)
        if number.value == float("inf"):
            raise fail("E005", "the number is too large for a float", Label(number.span))
        return number

    def frac(self, span: Span, c: Parts) -> t.Expr:
        return t.Frac(number_text(c[0])[:-1], span=span)

    def string(self, span: Span, c: Parts) -> t.Expr:
        return t.String(string_of(c[0]), span=span)

    def constant(self, span: Span, c: Parts) -> t.Expr:
        return t.Constant({"TRUE": True, "FALSE": False, "NONE": None}[c[0].type], span=span)

    def group(self, span: Span, c: Parts) -> t.Expr:
        return c[0]

    def tuple(self, span: Span, c: Parts) -> t.Expr:
        items = only(t.Expr, c)
        return t.Tuple(items, span=span, depth=_depth(span, *items))

    def list(self, span: Span, c: Parts) -> t.Expr:
        items = only(t.Expr, c)
        return t.List(items, span=span, depth=_depth(span, *items))

    def unary(self, span: Span, c: Parts) -> t.Expr:
        return t.Unary(str(c[0]), c[1], span=span, depth=_depth(span, c[1]))

    def binary(self, span: Span, c: Parts) -> t.Expr:
        left, op, right = c
        return t.Binary(str(op), left, right, span=span, depth=_depth(span, left, right))

    def call(self, span: Span, c: Parts) -> t.Expr:
        args, keywords = only(t.Expr, c[1:]), only(t.Keyword, c[1:])
        depth = _depth(span, c[0], *args, *keywords)
        check_unique(keywords)
        return t.Call(c[0], args, keywords, span=span, depth=depth)

    def keyword(self, span: Span, c: Parts) -> t.Keyword:
        return t.Keyword(word(c[0]), c[1], span=span)

    def attribute(self, span: Span, c: Parts) -> t.Expr:
        name = str(integer_of(c[1])) if c[1].type == "INT" else str(c[1])
        return t.Attribute(c[0], name, span=span, depth=_depth(span, c[0]))

    def subscript(self, span: Span, c: Parts) -> t.Expr:
        return t.Subscript(c[0], tuple(c[1:]), span=span, depth=_depth(span, *c))

    def slice(self, span: Span, c: Parts) -> t.Slice:
        return t.Slice(c[0], c[1], span=span)

    def quantifier(self, span: Span, c: Parts) -> t.Expr:
        token, variable, _, domain, body = c
        kind: Any = str(token)
        depth = _depth(span, domain, body)
        return t.Quantifier(kind, word(variable), domain, body, span=span, depth=depth)

    def type(self, span: Span, c: Parts) -> t.Type:
        bracket = SOURCE.get().text[span.end - 1] == "]"
        dims = tuple(d for d in c[1:] if d is not None)
        return t.Type(str(c[0]), dims if bracket else None, span=span)

    def bare_type(self, span: Span, c: Parts) -> t.Type:
        return t.Type(None, tuple(d for d in c if d is not None), span=span)

    def dim_range(self, span: Span, c: Parts) -> t.DimRange:
        return t.DimRange(c[0], c[1], span=span)

    def dim_rest(self, span: Span, c: Parts) -> t.DimRest:
        return t.DimRest(span=span)

    def names(self, span: Span, c: Parts) -> Words:
        return word_list(c)

    dotted = target = names

    def path(self, span: Span, c: Parts) -> t.Path:
        return t.Path(word_list(c), span=span)


def check_unique(keywords: tuple[t.Keyword, ...]) -> None:
    seen: dict[str, t.Keyword] = {}
    for keyword in keywords:
        first = seen.setdefault(keyword.name.text, keyword)
        if first is not keyword:
            places = Label(keyword.span, "given again"), Label(first.span, "given here")
            raise fail("E007", f"`{keyword.name}` is given twice", *places)
