"""What can go wrong in a rule's arithmetic: in operators, names, slices and numeric functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ....grammar.tree import tree as t
from ....grammar.tree.fold import literal
from .pieces import (
    PHRASES,
    Above,
    Alter,
    Change,
    binary,
    has_param,
    label,
    name,
    number,
    string,
    with_args_swapped,
)
from .roles import Roles

_SIGNS = {"+": "plus", "-": "minus", "*": "times", "/": "division", "//": "division", "@": "`@`"}

# -- arithmetic ------------------------------------------------------------------------------------


def _binary(node: t.Binary, above: Above, roles: Roles) -> Iterator[Change]:
    if node.op == "or":
        yield from _default(node, roles)
    elif node.op in _OTHER:
        yield from _arithmetic(node, roles)


_OTHER = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*"}


def _arithmetic(node: t.Binary, roles: Roles) -> Iterator[Change]:
    left, right, op = node.left, node.right, node.op
    other = "+" if op == "*" and _is_whole(node, roles) else _OTHER[op]
    yield f"{_SIGNS[op]} became {_SIGNS[other]}", t.replace(node, op=other)
    yield f"{label(right)} dropped", left
    if op in "+*":
        yield f"{label(left)} dropped", right
        yield f"{label(right)} counted twice", binary(op, node, right)
    else:
        yield f"operands of {_SIGNS[op]} swapped", t.replace(node, left=right, right=left)


def _product(node: t.Binary, above: Above, roles: Roles) -> Iterator[Change]:
    if node.op in "@^":
        swapped = t.replace(node, left=node.right, right=node.left)
        yield f"factors of `{node.op}` swapped", swapped


def _is_whole(expr: t.Node, roles: Roles) -> bool:
    """Whether an expression counts something: strides, extents."""
    plain = (t.Name, t.Number, t.Binary)
    nodes = t.walk(expr)
    names = [n.text for n in nodes if isinstance(n, t.Name)]
    counted = all(n in roles.settings or n[0].isupper() for n in names)
    return counted and all(isinstance(n, plain) for n in nodes)


def _default(node: t.Binary, roles: Roles) -> Iterator[Change]:
    """`(c.bias or 0)`. Where the pattern says the shape of a weight, the default is never used."""
    value = literal(node.right)
    if not isinstance(value, (int, float)):
        return
    what = label(node.left)
    yield f"{what} ignored", node.right
    if node.left.span.text not in roles.fixed:
        yield f"default of the {what} changed", t.replace(node, right=number(node.right, value + 1))
        yield f"absence of the {what} forgotten", node.left


def _unary(node: t.Unary, above: Above, roles: Roles) -> Iterator[Change]:
    if node.op == "-" and literal(node.operand) != 0 and not _same_axis(node, above, roles):
        yield "sign dropped", node.operand


def _same_axis(node: t.Unary, above: Above, roles: Roles) -> bool:
    """Whether `dim = -1` without its sign is the same axis: of a value that has two."""
    holder = above[0]
    call = next((n for n in above if isinstance(n, t.Call)), None)
    named = isinstance(holder, t.Keyword) and holder.name.text == "dim"
    return named and literal(node.operand) == 1 and call is not None and _rank(call, roles) == 2


def _rank(node: t.Call, roles: Roles) -> int | None:
    """The number of axes of what a call reads, if it is a value whose shape the pattern says."""
    return (
        roles.axes.get(node.args[0].text)
        if node.args and isinstance(node.args[0], t.Name)
        else None
    )


def _number(node: t.Number, above: Above, roles: Roles) -> Iterator[Change]:
    """An index, or an argument such as the axis in `per_channel(k, C, 1)`."""
    if isinstance(above[0], t.Subscript) or _is_function(above[0], roles):
        yield f"{node.text} became {int(not node.value)}", number(node, int(not node.value))


def _is_function(node: t.Node, roles: Roles) -> bool:
    return isinstance(node, t.Call) and not roles.called(node) and not _is_extreme(node)


def _is_extreme(node: t.Call) -> bool:
    return isinstance(node.function, t.Name) and node.function.text in ("max", "min")


def _slice(node: t.Slice, above: Above, roles: Roles) -> Iterator[Change]:
    if node.stop is not None:
        less, more = (binary(op, node.stop, number(node.stop, 1)) for op in "-+")
        yield "one too few taken", t.replace(node, stop=less)
        yield "one too many taken", t.replace(node, stop=more)
    if node.start is not None:
        later = binary("+", node.start, number(node.start, 1))
        yield "taken from one too late", t.replace(node, start=later)


# -- names -----------------------------------------------------------------------------------------


def _name(node: t.Name, above: Above, roles: Roles) -> Iterator[Change]:
    holder = above[0]
    if isinstance(holder, t.Attribute) and not holder.name.isdigit():
        return
    if isinstance(holder, t.Call) and (holder.function is node or _asks(holder, roles)):
        return
    extreme = isinstance(holder, t.Call) and _is_extreme(holder)
    later = _built_later(above, roles)
    for other in roles.kin(node.text):
        same = extreme and _takes(holder, other)
        if other not in later and not same and {node.text, other} not in roles.casts:
            yield f"`{other}` used for `{node.text}`", t.replace(node, text=other)


def _built_later(above: Above, roles: Roles) -> set[str]:
    """What no step has built yet where a name stands: no author takes that for another value."""
    step = next((n for n in above if isinstance(n, t.Build)), None)
    own = step.targets[0].text if step is not None else ""
    return set(roles.built[roles.built.index(own) :]) if own in roles.built else set()


def _asks(node: t.Call, roles: Roles) -> bool:
    """`rank(x)`: a question about one value, which has the same answer for its neighbours."""
    return len(node.args) == 1 and roles.is_graph(node.args[0]) and not roles.called(node)


def _takes(node: t.Node, other: str) -> bool:
    """`max(a, a)` is `a`, and that is another mutant already."""
    return other in {child.text for child in t.children(node) if isinstance(child, t.Name)}


def _attribute(node: t.Attribute, above: Above, roles: Roles) -> Iterator[Change]:
    if node.name in ("0", "1"):
        yield "the other axis taken", t.replace(node, name="10"[int(node.name)])
        return
    if not isinstance(node.value, t.Name) or node.value.text not in roles.handles:
        return
    for other, specs in roles.handles.items():
        if other != node.value.text and specs and has_param(specs, node.name):
            changed = t.replace(node, value=t.replace(node.value, text=other))
            yield f"`{other}.{node.name}` used for `{node.value.text}.{node.name}`", changed
    if node.name == "eps":
        yield "epsilon ten times too small", binary("/", node, number(node, 10))
    twin = {"running_mean": "running_var", "running_var": "running_mean"}.get(node.name)
    if twin is not None:
        yield f"{PHRASES[twin]} used for {PHRASES[node.name]}", t.replace(node, name=twin)


# -- numeric functions -----------------------------------------------------------------------------


def _call(node: t.Call, above: Above, roles: Roles) -> Iterator[Change]:
    if isinstance(node.function, t.Name) and not roles.called(node):
        yield from _function(node, node.function, roles)


def _function(node: t.Call, function: t.Name, roles: Roles) -> Iterator[Change]:
    if _is_extreme(node):
        other = {"max": "min", "min": "max"}[function.text]
        yield f"{function.text} became {other}", t.replace(node, function=name(node, other))
        for index, arg in enumerate(node.args):
            yield f"only argument {index + 1} of {function.text} taken", arg
        return
    if function.text == "einsum" and isinstance(node.args[0], t.String):
        yield from _equations(node, node.args[0])
        return
    yield from _outside(node, function)
    if node.args and not roles.is_graph(node.args[0]):
        yield f"{function.text} left out", node.args[0]
    if len(node.args) > 1 and type(node.args[0]) is type(node.args[1]):
        yield f"arguments of {function.text} swapped", with_args_swapped(node)


def _outside(node: t.Call, function: t.Name) -> Iterator[Change]:
    """`sqrt(v + eps)` as `sqrt(v) + eps`."""
    inner = node.args[0] if len(node.args) == 1 else None
    if isinstance(inner, t.Binary) and inner.op == "+":
        moved = binary("+", t.replace(node, args=(inner.left,)), inner.right)
        yield f"{label(inner.right)} moved outside of {function.text}", moved


def _equations(node: t.Call, equation: t.String) -> Iterator[Change]:
    terms, _, result = equation.value.partition("->")
    first, *rest = terms.split(",")
    wrong = {
        "result of the einsum transposed": f"{terms}->{_swapped(result)}",
        "first factor of the einsum transposed": f"{','.join([_swapped(first), *rest])}->{result}",
    }
    for phrase, text in wrong.items():
        if text != equation.value:
            yield phrase, t.replace(node, args=(string(equation, text), *node.args[1:]))


def _swapped(axes: str) -> str:
    return axes[1::-1] + axes[2:]


def _keyword(node: t.Keyword, above: Above, roles: Roles) -> Iterator[Change]:
    """An axis, or another whole number, as an argument of a function."""
    holder, value = above[0], literal(node.value)
    if isinstance(holder, t.Call) and not roles.called(holder) and type(value) is int:
        wrong = int(not value)
        changed = t.replace(node, value=number(node.value, wrong))
        yield f"{node.name} became {wrong}", changed


KINDS: Sequence[tuple[type, Alter]] = (
    (t.Binary, _binary), (t.Binary, _product), (t.Unary, _unary), (t.Number, _number),
    (t.Slice, _slice), (t.Name, _name), (t.Attribute, _attribute), (t.Call, _call),
    (t.Keyword, _keyword),
)  # fmt: skip
