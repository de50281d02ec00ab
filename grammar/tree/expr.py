"""Expressions and types: the part of the tree that rules, ops and pipelines share."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from ..diagnostics import Span
from .record import Record


class Node(Record):
    """`span` is where the node stands; it takes no part in equality."""

    span: Span = field(kw_only=True, compare=False, repr=False)


class Word(Node):
    """A name with a place: what a definition binds or a reference points to."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def is_dimension(self) -> bool:
        """UPPER names are dimensions and integers; lower names are values, ops and parameters."""
        return self.text[0].isupper()


# -- expressions ---------------------------------------------------------------------------------


class Expr(Node):
    """Anything that has a value. `depth` is the height of the tree, capped by the parser."""

    depth: int = field(kw_only=True, compare=False, repr=False, default=1)


class Name(Expr):
    text: str

    @property
    def is_dimension(self) -> bool:
        return self.text[0].isupper()


class Number(Expr):
    """An integer or a decimal, kept as written."""

    text: str

    @property
    def value(self) -> int | float:
        return int(self.text) if self.text.isdigit() else float(self.text)


class Share(float):
    """A number written as a percentage: computes as 0.3, is shown as 30%."""

    def __str__(self) -> str:
        return f"{100 * self:.6g}%"


class Frac(Expr):
    """`30%`: a share in 0..1, kept as the written percentage."""

    percent: str

    @property
    def value(self) -> Share:
        return Share(float(self.percent) / 100)


class String(Expr):
    """A string; `value` has its escapes resolved."""

    value: str


class Constant(Expr):
    """`none`, `true` or `false`."""

    value: bool | None


class Tuple(Expr):
    items: tuple[Expr, ...]


class List(Expr):
    items: tuple[Expr, ...]


class Unary(Expr):
    """`-x` or `not x`."""

    op: str
    operand: Expr


class Binary(Expr):
    """Arithmetic `+ - * / // mod @ ^`, comparison `== != < <= > >= in`, logic `and or`."""

    op: str
    left: Expr
    right: Expr


class Keyword(Node):
    """`name = value` in a call; in a pattern, an attribute that is constrained or bound."""

    name: Word
    value: Expr


class Call(Expr):
    function: Expr
    args: tuple[Expr, ...]
    keywords: tuple[Keyword, ...]


class Attribute(Expr):
    """`c.weight`, or `padding.0` for an element of a tuple attribute."""

    value: Expr
    name: str


class Slice(Node):
    start: Expr | None
    stop: Expr | None


class Subscript(Expr):
    value: Expr
    items: tuple[Expr | Slice, ...]


class Quantifier(Expr):
    """`forall w in params(D): owned(w)`."""

    kind: Literal["forall", "exists"]
    variable: Word
    domain: Expr
    body: Expr


# -- types ---------------------------------------------------------------------------------------


class DimRange(Node):
    """`1..64`: any extent from `low` to `high`, both included."""

    low: Expr
    high: Expr


class DimRest(Node):
    """`...`: any number of further axes."""


Dim = Expr | DimRange | DimRest


class Type(Node):
    """`f[N, C, H, W]`, `int`; without `name` the shape of a parameter, without `dims` no tensor."""

    name: str | None
    dims: tuple[Dim, ...] | None


class Param(Node):
    """A formal parameter of an op, an extern function, a rule or a pipeline."""

    name: Word
    type: Type
    default: Expr | None
    optional: bool = False
    variadic: bool = False


def children(node: Node) -> list[Node]:
    """The nodes directly below, in textual order."""
    found: list[Node] = []
    for value in node.values:
        if isinstance(value, tuple):
            found += [item for item in value if isinstance(item, Node)]
        elif isinstance(value, Node):
            found.append(value)
    return found


def walk(node: Node) -> list[Node]:
    """The node and everything below it, parents first, without recursion."""
    found, stack = [], [node]
    while stack:
        node = stack.pop()
        found.append(node)
        stack += children(node)[::-1]
    return found
