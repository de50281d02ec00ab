"""Nodes of the tree behave as frozen dataclasses do."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from lissom.grammar.diagnostics import Source, Span
from lissom.grammar.reached import reached
from lissom.grammar.text.fragment import parse_expression
from lissom.grammar.tree import tree as t
from lissom.grammar.tree.fold import Fold, literal

HERE, THERE = Span(Source("a", "x y"), 0, 1), Span(Source("a", "x y"), 2, 3)


def test_a_place_takes_no_part_in_equality() -> None:
    assert t.Name("x", span=HERE) == t.Name("x", span=THERE, depth=3)
    assert hash(t.Name("x", span=HERE)) == hash(t.Name("x", span=THERE))
    assert t.Name("x", span=HERE) != t.Name("y", span=HERE)


def test_nodes_of_two_kinds_are_not_equal() -> None:
    assert t.Name("x", span=HERE) != t.Word("x", span=HERE)
    assert t.Word("x", span=HERE) != "x"


def test_a_record_shows_its_content() -> None:
    assert repr(t.Unary("-", t.Name("x", span=HERE), span=HERE)) == (
        "Unary(op='-', operand=Name(text='x'))"
    )


def test_a_record_cannot_be_changed() -> None:
    word = t.Word("x", span=HERE)
    with pytest.raises(FrozenInstanceError):
        word.text = "y"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        word.other = 1  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        del word.text
    assert word.text == "x"


def test_defaults_are_filled_in_and_inherited() -> None:
    name = t.Word("x", span=HERE)
    param = t.Param(name, t.Type("int", None, span=HERE), None, span=HERE)
    assert (param.optional, param.variadic) == (False, False)
    assert t.Name("x", span=HERE).depth == 1
    assert t.Param.content == ("name", "type", "default", "optional", "variadic")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {"span": HERE}),
        (("x",), {}),
        (("x", "y"), {"span": HERE}),
        (("x",), {"span": HERE, "depth": 1}),
        ((), {"txt": "x", "span": HERE}),
    ],
)
def test_other_fields_are_refused(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Word has the fields"):
        t.Word(*values, **named)


def test_replace_keeps_the_rest() -> None:
    binary = t.Binary("+", t.Name("x", span=HERE), t.Name("y", span=THERE), span=HERE, depth=2)
    changed = t.replace(binary, op="-")
    assert (changed.op, changed.left, changed.depth) == ("-", binary.left, 2)
    assert changed.span is HERE
    assert binary.op == "+"


def test_copies_are_equal() -> None:
    name = t.Name("x", span=HERE)
    assert copy.deepcopy(name) == name
    assert pickle.loads(pickle.dumps(name)).span == HERE


def test_children_stand_in_textual_order() -> None:
    names = [t.Name(text, span=HERE) for text in "fab"]
    keyword = t.Keyword(t.Word("k", span=HERE), names[2], span=HERE)
    call = t.Call(names[0], (names[1],), (keyword,), span=HERE, depth=2)
    assert t.children(call) == [names[0], names[1], keyword]
    assert [n.text for n in t.walk(call) if isinstance(n, t.Name)] == ["f", "a", "b"]


def test_every_kind_of_expression_has_a_place_in_a_fold() -> None:
    class Text(Fold[str]):
        def binary(self, expr: t.Binary) -> str:
            return f"({self.of(expr.left)} {expr.op} {self.of(expr.right)})"

        def literal(self, expr: t.Number | t.Frac | t.String | t.Constant) -> str:
            return str(expr.value)

        def other(self, expr: t.Expr) -> str:
            return f"<{expr.span.text}>"

    kinds = [kind for kind in vars(t).values() if isinstance(kind, type)]
    assert {k for k in kinds if issubclass(k, t.Expr) and k is not t.Expr} == {*Text._of_kind}
    assert Text().of(parse_expression("30% + f(x) * 2")) == "(30% + (<f(x)> * 2))"


@pytest.mark.parametrize(
    ("text", "value"), [("-30%", -0.3), ("-2", -2), ("none", None), ('"a"', "a"), ("not 3", None)]
)
def test_the_value_of_a_literal(text: str, value: object) -> None:
    assert literal(parse_expression(text)) == value


def test_what_is_reached_is_given_once_also_in_a_ring() -> None:
    ring = {1: [2, 3], 2: [1], 3: [4], 4: [3]}
    assert reached([1], ring.__getitem__) == [1, 3, 4, 2]
    assert reached([4, 4], ring.__getitem__) == [4, 3]
