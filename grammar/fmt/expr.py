"""Canonical text of expressions, types and signatures, with as few parentheses as can be."""

from __future__ import annotations

from functools import singledispatch

from ..tree import tree as t
from .layout import Bracket, Chain, Document, Joined, Text, outside, row

ANY, OR, AND, NOT, COMPARE, SUM, PRODUCT, SIGN, POWER, POSTFIX = range(10)
"""How tightly an expression binds; an operand too loose for its place is put in parentheses."""

PLACES = {
    "or": (OR, OR, AND), "and": (AND, AND, NOT), "+": (SUM, SUM, PRODUCT), "-": (SUM, SUM, PRODUCT),
    "^": (POWER, POSTFIX, SIGN),
}  # fmt: skip
PLACES |= dict.fromkeys(("*", "/", "//", "@", "mod"), (PRODUCT, PRODUCT, SIGN))
PLACES |= dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in"), (COMPARE, SUM, SUM))
"""Operator: how tightly the whole binds, and its left and right operand must at least."""

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"})


def quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def expression(expr: t.Expr) -> Document:
    """An expression that stands outside of brackets, where a line end would end the statement."""
    return outside(doc(expr))


def binding_power(expr: t.Expr) -> int:
    if isinstance(expr, t.Quantifier):
        return ANY
    if isinstance(expr, t.Unary):
        return SIGN if expr.op == "-" else NOT
    return PLACES[expr.op][0] if isinstance(expr, t.Binary) else POSTFIX


def operand(expr: t.Expr, least: int) -> Document:
    inner = doc(expr)
    return inner if binding_power(expr) >= least else Bracket("(", (inner,), ")")


@singledispatch
def doc(node: t.Node) -> Document:
    raise TypeError(f"no text for {type(node).__name__}")


@doc.register
def _(node: t.Word) -> Document:
    return Text(node.text)


@doc.register
def _(node: t.Path) -> Document:
    return Text(str(node))


@doc.register
def _(node: t.Name) -> Document:
    return Text(node.text)


@doc.register
def _(node: t.Number) -> Document:
    return Text(node.text)


@doc.register
def _(node: t.Frac) -> Document:
    return Text(f"{node.percent}%")


@doc.register
def _(node: t.String) -> Document:
    return Text(quoted(node.value))


@doc.register
def _(node: t.Constant) -> Document:
    return Text({True: "true", False: "false", None: "none"}[node.value])


@doc.register
def _(node: t.Tuple) -> Document:
    return Bracket("(", tuple(map(doc, node.items)), ")")


@doc.register
def _(node: t.List) -> Document:
    return Bracket("[", tuple(map(doc, node.items)), "]")


@doc.register
def _(node: t.Unary) -> Document:
    sign = "-" if node.op == "-" else "not "
    return row(sign, operand(node.operand, binding_power(node)))


@doc.register
def _(node: t.Binary) -> Document:
    """A run such as `a + b - c` is one chain: it breaks before any of its operators."""
    whole, left, right = PLACES[node.op]
    rest = [(node.op, operand(node.right, right))]
    first = node.left
    while left == whole and isinstance(first, t.Binary) and binding_power(first) == whole:
        rest.append((first.op, operand(first.right, right)))
        first = first.left
    return Chain(operand(first, left), tuple(reversed(rest)))


@doc.register
def _(node: t.Keyword) -> Document:
    return row(f"{node.name} = ", doc(node.value))


@doc.register
def _(node: t.Rest) -> Document:
    return Text(f"{node.name}...")


@doc.register
def _(node: t.Call) -> Document:
    arguments = (*node.args, *node.keywords)
    return row(operand(node.function, POSTFIX), Bracket("(", tuple(map(doc, arguments)), ")"))


@doc.register
def _(node: t.Attribute) -> Document:
    """`(p.0).1` keeps its parentheses, since `0.1` would be read as a number."""
    inner = operand(node.value, POSTFIX)
    if node.name.isdigit() and _ends_in_integer(node.value):
        inner = Bracket("(", (inner,), ")")
    return row(inner, f".{node.name}")


def _ends_in_integer(value: t.Expr) -> bool:
    if isinstance(value, t.Number):
        return value.text.isdigit()
    return isinstance(value, t.Attribute) and value.name.isdigit()


@doc.register
def _(node: t.Slice) -> Document:
    start, stop = (operand(part, OR) if part else Text("") for part in (node.start, node.stop))
    return row(start, ":", stop)


@doc.register
def _(node: t.Subscript) -> Document:
    return row(operand(node.value, POSTFIX), Bracket("[", tuple(map(doc, node.items)), "]"))


@doc.register
def _(node: t.Quantifier) -> Document:
    domain = operand(node.domain, OR)
    return row(f"{node.kind} {node.variable} in ", domain, ": ", doc(node.body))


@doc.register
def _(node: t.DimRange) -> Document:
    return row(doc(node.low), "..", doc(node.high))


@doc.register
def _(node: t.DimRest) -> Document:
    return Text("...")


@doc.register
def _(node: t.Type) -> Document:
    name = Text(node.name or "")
    if node.dims is None:
        return name
    return row(name, Bracket("[", tuple(map(doc, node.dims)), "]"))


@doc.register
def _(node: t.Param) -> Document:
    mark = "?" if node.optional else "..." if node.variadic else ""
    default = row(" = ", doc(node.default)) if node.default else Text("")
    return row(f"{node.name}{mark}: ", doc(node.type), default)


@doc.register
def _(node: t.OpSet) -> Document:
    names = " | ".join(word.text for word in node.names)
    return Text(names if len(node.names) == 1 else f"({names})")


@doc.register
def _(node: t.Slot) -> Document:
    same = node.theirs.text == node.ours.text
    name = node.theirs.text if same else f"{node.theirs} = {node.ours}"
    return Text(name + ("..." if node.variadic else ""))


@doc.register
def _(node: t.Signature) -> Document:
    call = Bracket("(", tuple(map(doc, node.slots)), ")")
    return row(node.dotted, call, comma_list(" with ", node.fixed))


@doc.register
def _(node: t.Ref) -> Document:
    arguments = tuple(map(doc, (*node.args, *node.keywords)))
    call = Bracket("(", arguments, ")") if arguments else Text("")
    return row(node.rule.text, call, f" at {quoted(node.at)}" if node.at is not None else "")


def comma_list(lead: str, nodes: tuple[t.Keyword | t.Ref | t.Word, ...]) -> Joined:
    """`lead a, b`, or nothing where there are no nodes. Stands outside of brackets."""
    parts: list[Document] = []
    for node in nodes:
        parts += [Text(", " if parts else lead), _listed(node)]
    return Joined(tuple(parts))


def _listed(node: t.Keyword | t.Ref | t.Word) -> Document:
    if isinstance(node, t.Keyword):
        return row(f"{node.name} = ", expression(node.value))
    return doc(node)
