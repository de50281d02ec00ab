"""Builds the tree of a file: one method for each rule of `lissom.lark` that makes a node."""

from __future__ import annotations

from typing import Any

from ..diagnostics import Label, Span, fail
from ..tree import tree as t
from .build_expr import (
    Expressions,
    Parts,
    check_unique,
    collect,
    integer_of,
    only,
    single_name,
    string_of,
    token_span,
    word,
    word_list,
)
from .lalr import Token


class BuildDeclarations(Expressions):
    """Files, ops, extern functions, pipelines, tests."""

    file = collect(t.File)
    on_fail = single_name(t.OnFail)
    mode = single_name(t.Mode)
    calibrate = single_name(t.Calibrate)
    checkpoint = single_name(t.Checkpoint)
    once = collect(t.Once)
    first = collect(t.First)

    def op_trait(self, span: Span, c: Parts) -> t.OpTrait:
        return t.OpTrait(c[0], span=span)

    def op_mixes(self, span: Span, c: Parts) -> t.OpMixes:
        return t.OpMixes(c[0], span=span)

    def op_sums(self, span: Span, c: Parts) -> t.OpSums:
        return t.OpSums(c[0], span=span)

    def axes(self, span: Span, c: Parts) -> tuple[t.Word, ...]:
        return word_list(c)

    def use(self, span: Span, c: Parts) -> t.Use:
        return t.Use(c[0], None if c[1] is None else integer_of(c[1]), span=span)

    def extern(self, span: Span, c: Parts) -> t.Extern:
        return t.Extern(word(c[0]), c[1], c[2], c[3] is not None, span=span)

    def params(self, span: Span, c: Parts) -> tuple[t.Param, ...]:
        return only(t.Param, c)

    def param(self, span: Span, c: Parts) -> t.Param:
        name, mark, type_, default = c
        return t.Param(word(name), type_, default, mark == "?", mark == "...", span=span)

    def results(self, span: Span, c: Parts) -> tuple[t.Type, ...]:
        return tuple(c)

    def op(self, span: Span, c: Parts) -> t.Op:
        return t.Op(word(c[0]), c[1], c[2], tuple(c[3:]), span=span)

    def op_param(self, span: Span, c: Parts) -> t.OpParam:
        return t.OpParam(word(c[0]), c[1] is not None, c[2], span=span)

    def op_attr(self, span: Span, c: Parts) -> t.OpAttr:
        return t.OpAttr(word(c[0]), c[1], c[2], span=span)

    def op_dim(self, span: Span, c: Parts) -> t.OpDim:
        return t.OpDim(word(c[0]), c[1], span=span)

    def op_cost(self, span: Span, c: Parts) -> t.OpCost:
        return t.OpCost(word(c[0]), c[1], span=span)

    def op_meaning(self, span: Span, c: Parts) -> t.OpMeaning:
        return t.OpMeaning(c[0], span=span)

    def op_spelling(self, span: Span, c: Parts) -> t.OpSpelling:
        return t.OpSpelling(c[0], span=span)

    def signature(self, span: Span, c: Parts) -> t.Signature:
        fixed = only(t.Keyword, c)
        check_unique(fixed)
        return t.Signature(c[0], only(t.Slot, c), fixed, span=span)

    def slot(self, span: Span, c: Parts) -> t.Slot:
        theirs, ours, mark = c
        return t.Slot(word(theirs), word(ours or theirs), mark is not None, span=span)

    def pipeline(self, span: Span, c: Parts) -> t.Pipeline:
        return t.Pipeline(word(c[0]), c[1] or (), tuple(c[2:]), span=span)

    def input(self, span: Span, c: Parts) -> t.Input:
        return t.Input(word(c[0]), c[1], span=span)

    def data(self, span: Span, c: Parts) -> t.Data:
        return t.Data(word(c[0]), c[1], span=span)

    def budget(self, span: Span, c: Parts) -> t.Budget:
        return t.Budget(c[0], c[1] and word(c[1]), span=span)

    def stage(self, span: Span, c: Parts) -> t.Stage:
        return t.Stage(word(c[0]), tuple(c[1:]), span=span)

    def recover(self, span: Span, c: Parts) -> t.Recover:
        return t.Recover(word(c[0]), tuple(c[1:]), span=span)

    def until(self, span: Span, c: Parts) -> t.Until:
        return t.Until(c[0], span=span)

    def repeat(self, span: Span, c: Parts) -> t.Repeat:
        name, _, values, most, limit, *items, until = c
        self._says_max(most, "repeat max 10 { ... }")
        count = None if limit is None else integer_of(limit)
        return t.Repeat(name and word(name), values, count, tuple(items), until, span=span)

    def control(self, span: Span, c: Parts) -> t.Control:
        return t.Control(word(c[0]), tuple(c[1:]), span=span)

    def rewind(self, span: Span, c: Parts) -> t.Rewind:
        return t.Rewind(c[0], span=span)

    def exit_on(self, span: Span, c: Parts) -> t.ExitOn:
        return t.ExitOn(word(c[0]), c[1], span=span)

    def verify(self, span: Span, c: Parts) -> t.Verify:
        return t.Verify(tuple(c), span=span)

    def fixpoint(self, span: Span, c: Parts) -> t.Fixpoint:
        limit = c[1]
        self._says_max(c[0], "fixpoint max 50 { ... }")
        return t.Fixpoint(only(t.Ref, c), None if limit is None else integer_of(limit), span=span)

    def _says_max(self, word: Token | None, help: str) -> None:
        if word is not None and word != "max":
            message = f"`{word}` is unexpected here"
            raise fail("E001", message, Label(token_span(word)), help=help)

    def each(self, span: Span, c: Parts) -> t.Each:
        return t.Each(c[0], c[1], c[2], span=span)

    def ref(self, span: Span, c: Parts) -> t.Ref:
        args, keywords = only(t.Expr, c), only(t.Keyword, c)
        check_unique(keywords)
        at = c[-1] if isinstance(c[-1], Token) and c[-1].type == "STRING" else None
        return t.Ref(word(c[0]), args, keywords, None if at is None else string_of(at), span=span)

    def test(self, span: Span, c: Parts) -> t.Test:
        return t.Test(word(c[0]), tuple(c[1:]), span=span)

    def fires(self, span: Span, c: Parts) -> t.Fires:
        return t.Fires(word(c[0]), c[1], span=span)

    def silent(self, span: Span, c: Parts) -> t.Silent:
        reason = c[2]
        text = (
            string_of(reason)
            if reason is not None and reason.type == "STRING"
            else reason and str(reason)
        )
        return t.Silent(word(c[0]), c[1], text, span=span)

    def check(self, span: Span, c: Parts) -> t.Check:
        return t.Check(c[0], span=span)


setattr(BuildDeclarations, "try", collect(t.Try))


class BuildRules(BuildDeclarations):
    """Rules and their clauses."""

    unless = collect(t.Unless)
    where = collect(t.Where)
    let = collect(t.Let)
    perturb = collect(t.Perturb)
    rewrite = collect(t.Rewrite)
    ensure = collect(t.Ensure)
    on_shared = single_name(t.OnShared)

    def kind(self, span: Span, c: Parts) -> str:
        return str(c[0])

    factkind = kind

    def rule(self, span: Span, c: Parts) -> t.Rule:
        return t.Rule(c[0], word(c[1]), c[2] or (), tuple(c[3:]), span=span)

    def doc(self, span: Span, c: Parts) -> t.Doc:
        return t.Doc(string_of(c[0]), span=span)

    def priority(self, span: Span, c: Parts) -> t.Priority:
        value = integer_of(c[1])
        return t.Priority(value if c[0] is None else -value, span=span)

    def recursive(self, span: Span, c: Parts) -> t.Recursive:
        return t.Recursive(c[0], span=span)

    def match(self, span: Span, c: Parts) -> t.Match:
        return t.Match(c[0] and word(c[0]), tuple(c[1:]), span=span)

    def match_dim(self, span: Span, c: Parts) -> t.MatchDim:
        return t.MatchDim(word(c[0]), word(c[2]), span=span)

    def match_param(self, span: Span, c: Parts) -> t.MatchParam:
        return t.MatchParam(word(c[0]), c[1], span=span)

    def match_value(self, span: Span, c: Parts) -> t.MatchValue:
        return t.MatchValue(word(c[0]), c[1], tuple(map(string_of, c[2:])), span=span)

    def opset(self, span: Span, c: Parts) -> t.OpSet:
        return t.OpSet(word_list(c), span=span)

    def op_pattern(self, span: Span, c: Parts) -> t.OpPattern:
        shared, targets, ops, repeat, *rest, handle = c
        operands, attrs = only((t.Expr, t.Rest), rest), only(t.Keyword, rest)
        check_unique(attrs)
        mark: Any = "" if repeat is None else str(repeat)
        name, is_shared = handle and word(handle), shared is not None
        return t.OpPattern(targets, ops, operands, attrs, name, mark, is_shared, span=span)

    def operand(self, span: Span, c: Parts) -> t.Expr:
        return c[0]

    def rest_operand(self, span: Span, c: Parts) -> t.Rest:
        return t.Rest(word(c[0]), span=span)

    def attr_pattern(self, span: Span, c: Parts) -> t.Keyword:
        return t.Keyword(word(c[0]), c[1], span=span)

    def shape_pattern(self, span: Span, c: Parts) -> t.ShapePattern:
        return t.ShapePattern(c[0], c[1], span=span)

    def site_pattern(self, span: Span, c: Parts) -> t.SitePattern:
        return t.SitePattern(word(c[1]), string_of(c[2]), span=span)

    def guard(self, span: Span, c: Parts) -> t.Guard:
        return t.Guard(c[0], None if c[1] is None else string_of(c[1]), span=span)

    def hole(self, span: Span, c: Parts) -> t.Hole:
        return t.Hole(span=span)

    def binding(self, span: Span, c: Parts) -> t.Binding:
        return t.Binding(c[0], c[1], span=span)

    def assign(self, span: Span, c: Parts) -> t.Assign:
        return t.Assign(c[0], c[1], span=span)

    def move(self, span: Span, c: Parts) -> t.Assign | t.Effect:
        if c[1] is None:
            return t.Effect(c[0], span=span)
        return t.Assign(_as_path(c[0]), c[1], span=span)

    def build(self, span: Span, c: Parts) -> t.Build:
        targets, value, handle, origin = c
        return t.Build(targets, value, handle and word(handle), origin and word(origin), span=span)

    def store(self, span: Span, c: Parts) -> t.Store:
        return t.Store(word(c[0]), c[1], span=span)

    def attach(self, span: Span, c: Parts) -> t.Attach:
        return t.Attach(c[0], word(c[1]), c[2], span=span)

    def exit(self, span: Span, c: Parts) -> t.Exit:
        return t.Exit(word(c[0]), c[1], span=span)

    def train(self, span: Span, c: Parts) -> t.Train:
        names = tuple(word for names in c if isinstance(names, tuple) for word in names)
        return t.Train(names, only(t.TrainAs, c), span=span)

    def train_as(self, span: Span, c: Parts) -> t.TrainAs:
        return t.TrainAs(c[0], c[1], c[2], span=span)

    def claim(self, span: Span, c: Parts) -> t.Claim:
        return t.Claim(c[0], c[1], c[2] and word(c[2]), span=span)

    def fact(self, span: Span, c: Parts) -> t.Fact:
        return t.Fact(c[0], c[1], span=span)


def _as_path(expr: t.Expr) -> t.Path:
    """`c.weight`, which the grammar reads as an expression, as the path of an assignment."""
    parts: list[t.Word] = []
    node: t.Expr = expr
    while isinstance(node, t.Attribute) and not node.name.isdigit():
        span = Span(node.span.source, node.span.end - len(node.name), node.span.end)
        parts.append(t.Word(node.name, span=span))
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
