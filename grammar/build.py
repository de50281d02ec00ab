"""Builds the tree from lark's: one method for each rule of `lissom.lark`. No step recurses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lark import Token
from lark.tree import Meta
from lark.visitors import Transformer_NonRecursive, v_args

from . import tree as t
from .diagnostics import SOURCE, Label, Span, fail

MAX_DEPTH = 64
MAX_DIGITS = 18
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


def _span(meta: Meta) -> Span:
    if meta.empty:
        return Span(SOURCE.get(), 0, 0)
    return Span(SOURCE.get(), meta.start_pos, meta.end_pos)


def _word(token: Token) -> t.Word:
    return t.Word(str(token), span=_token_span(token))


def _token_span(token: Token) -> Span:
    start = token.start_pos or 0
    return Span(SOURCE.get(), start, token.end_pos or start)


def _words(items: Sequence[Any]) -> tuple[t.Word, ...]:
    return tuple(_word(item) for item in items if isinstance(item, Token))


def _string(token: Token) -> str:
    out, escaped = [], False
    for char in str(token)[1:-1]:
        if escaped or char != "\\":
            out.append(_ESCAPES[char] if escaped else char)
            escaped = False
        else:
            escaped = True
    return "".join(out)


def _integer(token: Token) -> int:
    if len(token) > MAX_DIGITS:
        raise fail("E005", f"a number has at most {MAX_DIGITS} digits", Label(_token_span(token)))
    return int(token)


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


def _only(kind: type, items: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(item for item in items if isinstance(item, kind))


def _collect(kind: Callable[..., t.Node]) -> Callable[..., t.Node]:
    """A callback for a rule whose node holds nothing but the tuple of its children."""
    return lambda self, meta, c: kind(tuple(c), span=_span(meta))


def _single(kind: Callable[..., t.Node]) -> Callable[..., t.Node]:
    """A callback for a rule whose node holds one name."""
    return lambda self, meta, c: kind(_word(c[0]), span=_span(meta))


@v_args(meta=True)
class Expressions(Transformer_NonRecursive):
    """Expressions and types."""

    def name(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.Name(str(c[0]), span=_span(meta))

    def integer(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.Number(str(_integer(c[0])), span=_span(meta))

    def float(self, meta: Meta, c: list[Any]) -> t.Expr:
        number = t.Number(str(c[0]), span=_span(meta))
        if number.value == float("inf"):
            raise fail("E005", "the number is too large for a float", Label(number.span))
        return number

    def frac(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.Frac(str(c[0])[:-1], span=_span(meta))

    def string(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.String(_string(c[0]), span=_span(meta))

    def constant(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.Constant({"TRUE": True, "FALSE": False, "NONE": None}[c[0].type], span=_span(meta))

    def group(self, meta: Meta, c: list[Any]) -> t.Expr:
        return c[0]

    def tuple(self, meta: Meta, c: list[Any]) -> t.Expr:
        items = _only(t.Expr, c)
        return t.Tuple(items, span=_span(meta), depth=_depth(_span(meta), *items))

    def list(self, meta: Meta, c: list[Any]) -> t.Expr:
        items = _only(t.Expr, c)
        return t.List(items, span=_span(meta), depth=_depth(_span(meta), *items))

    def unary(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.Unary(str(c[0]), c[1], span=_span(meta), depth=_depth(_span(meta), c[1]))

    def binary(self, meta: Meta, c: list[Any]) -> t.Expr:
        left, op, right = c
        return t.Binary(
            str(op), left, right, span=_span(meta), depth=_depth(_span(meta), left, right)
        )

    def call(self, meta: Meta, c: list[Any]) -> t.Expr:
        args, keywords = _only(t.Expr, c[1:]), _only(t.Keyword, c[1:])
        depth = _depth(_span(meta), c[0], *args, *keywords)
        _check_unique(keywords)
        return t.Call(c[0], args, keywords, span=_span(meta), depth=depth)

    def keyword(self, meta: Meta, c: list[Any]) -> t.Keyword:
        return t.Keyword(_word(c[0]), c[1], span=_span(meta))

    def attribute(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.Attribute(c[0], str(c[1]), span=_span(meta), depth=_depth(_span(meta), c[0]))

    def subscript(self, meta: Meta, c: list[Any]) -> t.Expr:
        return t.Subscript(c[0], tuple(c[1:]), span=_span(meta), depth=_depth(_span(meta), *c))

    def slice(self, meta: Meta, c: list[Any]) -> t.Slice:
        return t.Slice(c[0], c[1], span=_span(meta))

    def quantifier(self, meta: Meta, c: list[Any]) -> t.Expr:
        kind, variable, _, domain, body = c
        depth = _depth(_span(meta), domain, body)
        return t.Quantifier(str(kind), _word(variable), domain, body, span=_span(meta), depth=depth)  # type: ignore[arg-type]

    def type(self, meta: Meta, c: list[Any]) -> t.Type:
        bracket = (
            meta.end_pos - meta.start_pos > len(c[0]) and SOURCE.get().text[meta.end_pos - 1] == "]"
        )
        dims = tuple(d for d in c[1:] if d is not None)
        return t.Type(str(c[0]), dims if bracket else None, span=_span(meta))

    def bare_type(self, meta: Meta, c: list[Any]) -> t.Type:
        return t.Type(None, tuple(d for d in c if d is not None), span=_span(meta))

    def dim_range(self, meta: Meta, c: list[Any]) -> t.DimRange:
        return t.DimRange(c[0], c[1], span=_span(meta))

    def dim_rest(self, meta: Meta, c: list[Any]) -> t.DimRest:
        return t.DimRest(span=_span(meta))

    def names(self, meta: Meta, c: list[Any]) -> tuple[t.Word, ...]:
        return _words(c)

    dotted = target = names

    def path(self, meta: Meta, c: list[Any]) -> t.Path:
        return t.Path(_words(c), span=_span(meta))


def _check_unique(keywords: tuple[t.Keyword, ...]) -> None:
    seen: dict[str, t.Keyword] = {}
    for keyword in keywords:
        first = seen.setdefault(keyword.name.text, keyword)
        if first is not keyword:
            places = Label(keyword.span, "given again"), Label(first.span, "given here")
            raise fail("E007", f"`{keyword.name}` is given twice", *places)


@v_args(meta=True)
class Declarations(Expressions):
    """Files, ops, extern functions, pipelines, tests."""

    file = _collect(t.File)
    op_trait = _single(t.OpTrait)
    on_fail = _single(t.OnFail)
    mode = _single(t.Mode)
    calibrate = _single(t.Calibrate)
    once = _collect(t.Once)
    first = _collect(t.First)

    def op_trait(self, meta: Meta, c: list[Any]) -> t.OpTrait:
        return t.OpTrait(c[0], span=_span(meta))

    def use(self, meta: Meta, c: list[Any]) -> t.Use:
        return t.Use(c[0], None if c[1] is None else _integer(c[1]), span=_span(meta))

    def extern(self, meta: Meta, c: list[Any]) -> t.Extern:
        return t.Extern(_word(c[0]), c[1], c[2], c[3] is not None, span=_span(meta))

    def params(self, meta: Meta, c: list[Any]) -> tuple[t.Param, ...]:
        return _only(t.Param, c)

    def param(self, meta: Meta, c: list[Any]) -> t.Param:
        name, mark, type_, default = c
        return t.Param(_word(name), type_, default, mark == "?", mark == "...", span=_span(meta))

    def results(self, meta: Meta, c: list[Any]) -> tuple[t.Type, ...]:
        return tuple(c)

    def op(self, meta: Meta, c: list[Any]) -> t.Op:
        return t.Op(_word(c[0]), c[1], c[2], tuple(c[3:]), span=_span(meta))

    def op_param(self, meta: Meta, c: list[Any]) -> t.OpParam:
        return t.OpParam(_word(c[0]), c[1] is not None, c[2], span=_span(meta))

    def op_attr(self, meta: Meta, c: list[Any]) -> t.OpAttr:
        return t.OpAttr(_word(c[0]), c[1], c[2], span=_span(meta))

    def op_dim(self, meta: Meta, c: list[Any]) -> t.OpDim:
        return t.OpDim(_word(c[0]), c[1], span=_span(meta))

    def op_cost(self, meta: Meta, c: list[Any]) -> t.OpCost:
        return t.OpCost(_word(c[0]), c[1], span=_span(meta))

    def op_meaning(self, meta: Meta, c: list[Any]) -> t.OpMeaning:
        return t.OpMeaning(c[0], span=_span(meta))

    def op_spelling(self, meta: Meta, c: list[Any]) -> t.OpSpelling:
        return t.OpSpelling(c[0], span=_span(meta))

    def signature(self, meta: Meta, c: list[Any]) -> t.Signature:
        return t.Signature(c[0], _only(t.Slot, c), _only(t.Keyword, c), span=_span(meta))

    def slot(self, meta: Meta, c: list[Any]) -> t.Slot:
        theirs, ours, mark = c
        return t.Slot(_word(theirs), _word(ours or theirs), mark is not None, span=_span(meta))

    def pipeline(self, meta: Meta, c: list[Any]) -> t.Pipeline:
        return t.Pipeline(_word(c[0]), c[1] or (), tuple(c[2:]), span=_span(meta))

    def input(self, meta: Meta, c: list[Any]) -> t.Input:
        return t.Input(_word(c[0]), c[1], span=_span(meta))

    def data(self, meta: Meta, c: list[Any]) -> t.Data:
        return t.Data(_word(c[0]), c[1], span=_span(meta))

    def budget(self, meta: Meta, c: list[Any]) -> t.Budget:
        return t.Budget(c[0], c[1] and _word(c[1]), span=_span(meta))

    def stage(self, meta: Meta, c: list[Any]) -> t.Stage:
        return t.Stage(_word(c[0]), tuple(c[1:]), span=_span(meta))

    def recover(self, meta: Meta, c: list[Any]) -> t.Recover:
        return t.Recover(_word(c[0]), tuple(c[1:]), span=_span(meta))

    def verify(self, meta: Meta, c: list[Any]) -> t.Verify:
        return t.Verify(tuple(c), span=_span(meta))

    def fixpoint(self, meta: Meta, c: list[Any]) -> t.Fixpoint:
        word, limit = c[0], c[1]
        if word is not None and word != "max":
            raise fail(
                "E001",
                f"`{word}` is unexpected here",
                Label(_token_span(word)),
                help="fixpoint max 50 { ... }",
            )
        return t.Fixpoint(
            _only(t.Ref, c), None if limit is None else _integer(limit), span=_span(meta)
        )

    def each(self, meta: Meta, c: list[Any]) -> t.Each:
        return t.Each(c[0], c[1], c[2], span=_span(meta))

    def ref(self, meta: Meta, c: list[Any]) -> t.Ref:
        args, keywords = _only(t.Expr, c), _only(t.Keyword, c)
        _check_unique(keywords)
        at = c[-1] if isinstance(c[-1], Token) and c[-1].type == "STRING" else None
        return t.Ref(
            _word(c[0]), args, keywords, None if at is None else _string(at), span=_span(meta)
        )

    def test(self, meta: Meta, c: list[Any]) -> t.Test:
        return t.Test(_word(c[0]), tuple(c[1:]), span=_span(meta))

    def fires(self, meta: Meta, c: list[Any]) -> t.Fires:
        return t.Fires(_word(c[0]), c[1], span=_span(meta))

    def silent(self, meta: Meta, c: list[Any]) -> t.Silent:
        reason = c[2]
        text = (
            _string(reason)
            if reason is not None and reason.type == "STRING"
            else reason and str(reason)
        )
        return t.Silent(_word(c[0]), c[1], text, span=_span(meta))

    def check(self, meta: Meta, c: list[Any]) -> t.Check:
        return t.Check(c[0], span=_span(meta))


setattr(Declarations, "try", v_args(meta=True)(_collect(t.Try)))


@v_args(meta=True)
class Build(Declarations):
    """Rules and their clauses."""

    unless = _collect(t.Unless)
    where = _collect(t.Where)
    let = _collect(t.Let)
    perturb = _collect(t.Perturb)
    rewrite = _collect(t.Rewrite)
    ensure = _collect(t.Ensure)
    on_shared = _single(t.OnShared)

    def rule(self, meta: Meta, c: list[Any]) -> t.Rule:
        return t.Rule(
            str(c[0].children[0]), _word(c[1]), c[2] or (), tuple(c[3:]), span=_span(meta)
        )  # type: ignore[arg-type]

    def doc(self, meta: Meta, c: list[Any]) -> t.Doc:
        return t.Doc(_string(c[0]), span=_span(meta))

    def priority(self, meta: Meta, c: list[Any]) -> t.Priority:
        value = _integer(c[1])
        return t.Priority(value if c[0] is None else -value, span=_span(meta))

    def recursive(self, meta: Meta, c: list[Any]) -> t.Recursive:
        return t.Recursive(c[0], span=_span(meta))

    def match(self, meta: Meta, c: list[Any]) -> t.Match:
        return t.Match(c[0] and _word(c[0]), tuple(c[1:]), span=_span(meta))

    def match_dim(self, meta: Meta, c: list[Any]) -> t.MatchDim:
        return t.MatchDim(_word(c[0]), _word(c[2]), span=_span(meta))

    def match_param(self, meta: Meta, c: list[Any]) -> t.MatchParam:
        return t.MatchParam(_word(c[0]), c[1], span=_span(meta))

    def match_value(self, meta: Meta, c: list[Any]) -> t.MatchValue:
        return t.MatchValue(_word(c[0]), c[1], tuple(map(_string, c[2:])), span=_span(meta))

    def opset(self, meta: Meta, c: list[Any]) -> t.OpSet:
        return t.OpSet(_words(c), span=_span(meta))

    def op_pattern(self, meta: Meta, c: list[Any]) -> t.OpPattern:
        shared, targets, ops, repeat, *rest, handle = c
        operands, attrs = _only((t.Expr, t.Rest), rest), _only(t.Keyword, rest)  # type: ignore[arg-type]
        _check_unique(attrs)
        mark = "" if repeat is None else str(repeat)
        return t.OpPattern(
            targets, ops, operands, attrs, handle and _word(handle), mark, shared is not None, span=_span(meta)  # type: ignore[arg-type]
        )  # fmt: skip

    def operand(self, meta: Meta, c: list[Any]) -> t.Expr:
        return c[0]

    def rest_operand(self, meta: Meta, c: list[Any]) -> t.Rest:
        return t.Rest(_word(c[0]), span=_span(meta))

    def attr_pattern(self, meta: Meta, c: list[Any]) -> t.Keyword:
        return t.Keyword(_word(c[0]), c[1], span=_span(meta))

    def shape_pattern(self, meta: Meta, c: list[Any]) -> t.ShapePattern:
        return t.ShapePattern(c[0], c[1], span=_span(meta))

    def site_pattern(self, meta: Meta, c: list[Any]) -> t.SitePattern:
        return t.SitePattern(_word(c[1]), _string(c[2]), span=_span(meta))

    def guard(self, meta: Meta, c: list[Any]) -> t.Guard:
        return t.Guard(c[0], None if c[1] is None else _string(c[1]), span=_span(meta))

    def hole(self, meta: Meta, c: list[Any]) -> t.Hole:
        return t.Hole(span=_span(meta))

    def binding(self, meta: Meta, c: list[Any]) -> t.Binding:
        return t.Binding(c[0], c[1], span=_span(meta))

    def assign(self, meta: Meta, c: list[Any]) -> t.Assign:
        return t.Assign(c[0], c[1], span=_span(meta))

    def move(self, meta: Meta, c: list[Any]) -> t.Assign | t.Effect:
        if c[1] is None:
            return t.Effect(c[0], span=_span(meta))
        return t.Assign(_as_path(c[0]), c[1], span=_span(meta))

    def build(self, meta: Meta, c: list[Any]) -> t.Build:
        targets, value, handle, origin = c
        return t.Build(
            targets, value, handle and _word(handle), origin and _word(origin), span=_span(meta)
        )

    def store(self, meta: Meta, c: list[Any]) -> t.Store:
        return t.Store(_word(c[0]), c[1], span=_span(meta))

    def attach(self, meta: Meta, c: list[Any]) -> t.Attach:
        return t.Attach(c[0], _word(c[1]), c[2], span=_span(meta))

    def exit(self, meta: Meta, c: list[Any]) -> t.Exit:
        return t.Exit(_word(c[0]), c[1], span=_span(meta))

    def train(self, meta: Meta, c: list[Any]) -> t.Train:
        return t.Train(tuple(word for names in c for word in names), span=_span(meta))

    def claim(self, meta: Meta, c: list[Any]) -> t.Claim:
        return t.Claim(c[0], c[1], c[2] and _word(c[2]), span=_span(meta))

    def fact(self, meta: Meta, c: list[Any]) -> t.Fact:
        return t.Fact(str(c[0].children[0]), c[1], span=_span(meta))  # type: ignore[arg-type]


def _as_path(expr: t.Expr) -> t.Path:
    """`c.weight`, which the grammar reads as an expression, as the path of an assignment."""
    parts: list[t.Word] = []
    node: t.Expr = expr
    while isinstance(node, t.Attribute):
        parts.append(
            t.Word(
                node.name,
                span=Span(node.span.source, node.span.end - len(node.name), node.span.end),
            )
        )
        node = node.value
    if not isinstance(node, t.Name):
        raise fail(
            "E001",
            "only a value, a weight or a dimension can be changed",
            Label(expr.span),
            help="c.weight := ...",
        )
    parts.append(t.Word(node.text, span=node.span))
    return t.Path(tuple(reversed(parts)), span=expr.span)
