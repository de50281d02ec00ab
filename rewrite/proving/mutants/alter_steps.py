"""What can go wrong in a rule's steps: in the ops it builds, their weights and settings, in `let`
and in `perturb`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ....grammar.checks.kind import DTYPES
from ....grammar.tree import tree as t
from ....grammar.tree.fold import literal
from ...ops.attributes import AttrSpec
from ...ops.dims import ShapeSpec
from ...ops.opspec import OpSpec, ParamSpec
from ..models.settings import is_scale
from .pieces import (
    EIGHTH,
    HALF,
    WEIGHTS,
    Above,
    Alter,
    Change,
    attribute,
    binary,
    call,
    has_param,
    label,
    none,
    number,
    part,
    string,
    weight_mistakes,
    with_args_swapped,
    word,
)
from .roles import Roles

# -- ops -------------------------------------------------------------------------------------------


def _call(node: t.Call, above: Above, roles: Roles) -> Iterator[Change]:
    specs = roles.called(node)
    if specs:
        yield from _swapped_operands(node, specs)
        yield from _siblings(node, roles)
        yield from _own_settings(node, specs, roles)


def _swapped_operands(node: t.Call, specs: Sequence[OpSpec]) -> Iterator[Change]:
    commutes = any("commutative" in spec.traits for spec in specs)
    if len(node.args) > 1 and not commutes and node.args[0] != node.args[1]:
        yield f"operands of {label(node)} swapped", with_args_swapped(node)


def _siblings(node: t.Call, roles: Roles) -> Iterator[Change]:
    """Other ops that could be called with the same inputs, weights and settings."""
    if roles.is_clone(node) or not isinstance(node.function, t.Name):
        return
    spec = roles.called(node)[0]
    form = _form(spec)
    others = (roles.vocabulary.get(n) for n in roles.vocabulary.names() if n != spec.name)
    same = (o for o in others if o is not None and _form(o) == form)
    apart = (other.name for other in same if not _same_on_numbers(spec, other))
    for other in islice(apart, 2):
        function = t.replace(node.function, text=other)
        yield f"{other} built for {spec.name}", t.replace(node, function=function)


def _same_on_numbers(one: OpSpec, other: OpSpec) -> bool:
    """Whether two ops give the same for numbers, as `sum` and `nansum` do, which differ where a
    value is nan alone: beside products with weights that is not compared.
    """
    inputs = {s.name: _drawn(s.shape, s.kind) for s in one.inputs}
    inputs |= {s.name: (inputs[s.name],) * 2 for s in one.inputs if s.variadic}
    params = {p.name: _drawn(p.shape, "f") for p in one.params}
    renamed = dict(zip((s.name for s in other.inputs), inputs.values(), strict=True))
    try:
        found = one.run(inputs, params, one.fill({}, (*inputs, *params)))
        again = other.run(renamed, params, other.fill({}, (*renamed, *params)))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(found, Tensor) and isinstance(again, Tensor) and torch.equal(found, again)


def _drawn(shape: ShapeSpec | None, kind: str) -> Tensor:
    rank = 2 if shape is None else shape.least + 2 * shape.rest
    numbers = torch.linspace(-1.7, 2.3, 2**rank).reshape((2,) * rank)
    return numbers > 0 if kind == "b" else (numbers > 0).long() if kind == "i" else numbers


def _form(spec: OpSpec) -> Any:
    """What tells ops apart to who calls them. Shapes go by their number of axes."""
    axes = [s.shape.least if s.shape else None for s in (*spec.inputs, *spec.params)]
    names = [p.name for p in spec.params], list(spec.attrs)
    return [s.kind for s in spec.inputs], axes, names, spec.results


OWN = {
    "stride": ("doubled", "*", 2), "padding": ("one too large", "+", 1), "eps": ("doubled", "*", 2),
    "dilation": ("doubled", "*", 2), "kernel_size": ("one too large", "+", 1),
    "start_dim": ("one too large", "+", 1),
}  # fmt: skip
"""How a copy of a matched op may get a setting wrong."""


def _own_settings(node: t.Call, specs: Sequence[OpSpec], roles: Roles) -> Iterator[Change]:
    """What a copy such as `c(x)` takes over from `c`, taken over wrongly."""
    if not roles.is_clone(node) or not isinstance(node.function, t.Name):
        return
    given = {keyword.name.text for keyword in node.keywords}
    shared = [a for a in specs[0].attrs.values() if all(a.name in spec.attrs for spec in specs)]
    for attr in (attr for attr in shared if attr.name not in given):
        handle = node.function.text
        single = attr.type == "ints" and roles.axes.get(f"{handle}.weight") == 1  # in any order
        if not single and (attr.name != "dilation" or handle not in roles.pointwise):
            yield from _own_attr(node, handle, attr)
    for param in (param for param in specs[0].params if param.name not in given):
        yield from _own_weight(node, node.function.text, param)


def _own_attr(node: t.Call, handle: str, attr: AttrSpec) -> Iterator[Change]:
    kept = attribute(node, handle, attr.name)
    if attr.name in OWN:
        how, op, by = OWN[attr.name]
        yield f"{label(kept)} {how}", _with(node, attr.name, binary(op, kept, number(node, by)))
    elif attr.type == "ints":
        yield f"{attr.name} reversed", _with(node, attr.name, call("_reversed", kept))


def _own_weight(node: t.Call, handle: str, param: ParamSpec) -> Iterator[Change]:
    kept = attribute(node, handle, param.name)
    yield f"{label(kept)} doubled", _with(node, param.name, call("_doubled", kept))
    yield f"{label(kept)} reversed", _with(node, param.name, call("_flipped", kept))
    if param.optional:
        yield f"{label(kept)} dropped", _with(node, param.name, none(node))


def _with(node: t.Call, keyword: str, value: t.Expr) -> t.Call:
    added = t.Keyword(word(node, keyword), value, span=node.span)
    return t.replace(node, keywords=(*node.keywords, added))


# -- keywords --------------------------------------------------------------------------------------


def keyword_dropped(node: t.Keyword, holder: t.Node, roles: Roles) -> str:
    """The phrase for a call without this keyword; empty where that is the same or no call."""
    text = node.name.text
    if not isinstance(holder, t.Call):
        return ""
    specs = roles.called(holder)
    if not specs:
        return "" if literal(node.value) is not None else f"{text} dropped"
    if roles.is_clone(holder):
        kept = t.Attribute(holder.function, text, span=node.span)
        return "" if node.value == kept else f"{text} left as it was"
    attr = specs[0].attrs.get(text)
    if attr is None or attr.dim is not None or _is_default(specs[0], attr, node.value):
        return ""
    return f"{text} dropped"


def _is_default(spec: OpSpec, attr: AttrSpec, value: t.Expr) -> bool:
    default, known = spec.defaults.get(attr.name), literal(value)
    return known is not None and default in (known, (known,) * (attr.width or 1))


def _keyword(node: t.Keyword, above: Above, roles: Roles) -> Iterator[Change]:
    holder = above[0]
    specs = roles.called(holder) if isinstance(holder, t.Call) else ()
    if not specs:
        return
    text = node.name.text
    if text in specs[0].attrs:
        changes = _setting(node.value, specs[0].attrs[text], "reduction" in specs[0].traits)
    else:
        changes = _weight(node.value, text, specs[0], roles)
    yield from ((phrase, t.replace(node, value=value)) for phrase, value in changes)


def _weight(value: t.Expr, param: str, spec: OpSpec, roles: Roles) -> Iterator[tuple[str, t.Expr]]:
    declared = next((p for p in spec.params if p.name == param), None)
    if declared is None:
        return
    if isinstance(value, t.Constant):
        owners = [h for h, specs in roles.handles.items() if specs and has_param(specs, param)]
        yield from ((f"{param} added", attribute(value, owner, param)) for owner in owners[:1])
        return
    if declared.optional:
        yield f"{param} dropped", none(value)
    coarse, signed = declared.kind not in DTYPES, not _scales_codes(declared, spec)
    halved = roles.is_halved(value)
    for phrase, function in weight_mistakes(value, coarse, signed, halved).items():
        yield f"{param} {phrase}", call(function, value)
    if not declared.optional and coarse and not halved:
        yield f"{param} rounded to bfloat16", call("_bfloat16", value)
    if not declared.optional:
        yield f"{param} mirrored along its last axis", call("_mirrored", value)
    if declared.shape is not None and declared.shape.least > 1:
        yield f"{param} transposed", call("_transposed", value)


def _scales_codes(param: ParamSpec, spec: OpSpec) -> bool:
    """Whether it is what weights in whole numbers are multiplied by: that is never negative."""
    whole = any(each.kind in DTYPES for each in spec.params)
    return whole and is_scale(param.name)


def _setting(value: t.Expr, attr: AttrSpec, reduces: bool) -> Iterator[tuple[str, t.Expr]]:
    """`reduces`: the axes that a list names are a set to this op, without an order."""
    text, known = attr.name, literal(value)
    items = value.items if isinstance(value, t.Tuple) else ()
    ordered = not (reduces and attr.type == "ints")
    if isinstance(value, t.Tuple) and len(items) == 2 and items[0] != items[1] and ordered:
        yield f"{text} of the two axes swapped", t.replace(value, items=value.items[::-1])
    if attr.dim is not None and known != 1:
        yield f"{text} = 1", number(value, 1)
    if attr.type not in ("int", "int2", "int3", "float") or isinstance(known, (bool, str)):
        return
    if known == 0 or attr.type == "float":
        yield f"{text} one too large", binary("+", value, number(value, 1))
    elif known is not None or not isinstance(value, t.Tuple):
        yield f"{text} doubled", binary("*", value, number(value, 2))
    if attr.type == "int2" and isinstance(value, (t.Name, t.Attribute)):
        pair = t.Tuple((part(value, 1), part(value, 0)), span=value.span)
        yield f"{text} of the two axes swapped", pair


# -- statements ------------------------------------------------------------------------------------


def _binding(node: t.Binding, above: Above, roles: Roles) -> Iterator[Change]:
    if len(node.targets) > 1:
        first, second, *rest = node.targets
        swapped = t.replace(node, targets=(second, first, *rest))
        yield f"`{first}` and `{second}` swapped", swapped
        return
    target = node.targets[0].text
    if target[0].isupper():
        yield f"`{target}` one too large", _plus_one(node)
        return
    for phrase, function in weight_mistakes(node.value).items():
        yield f"`{target}` {phrase}", t.replace(node, value=call(function, node.value))


def _plus_one(node: t.Binding) -> t.Binding:
    return t.replace(node, value=binary("+", node.value, number(node.value, 1)))


def _assign(node: t.Assign, above: Above, roles: Roles) -> Iterator[Change]:
    if len(node.path.parts) == 2:
        owner, weight = (word.text for word in node.path.parts)
        untouched = attribute(node.value, owner, weight)
        yield "perturbation left out", t.replace(node, value=untouched)
    for phrase in ("doubled", EIGHTH if roles.is_halved(node.value) else HALF):
        moved = t.replace(node, value=call(WEIGHTS[phrase], node.value))
        yield f"perturbed {node.path} {phrase}", moved


def _build(node: t.Build, above: Above, roles: Roles) -> Iterator[Change]:
    value = node.value
    if isinstance(value, t.Call) and value.args and roles.called(value):
        yield f"{label(value)} left out", t.replace(node, value=value.args[0])
    if isinstance(value, t.Name):
        yield from wrapped(node, roles)


def wrapped(node: t.Build, roles: Roles) -> Iterator[Change]:
    """The value of a step, spoilt by another op."""
    value, name_ = node.value, node.targets[0]
    for phrase, spoil in SPOILS.items():
        if not (roles.in_half and phrase in (HALF, BFLOAT16)):
            yield f"`{name_}` {phrase}", t.replace(node, value=spoil(value))
    for phrase, op in (
        () if roles.signless else (("made positive", "abs"), ("cut off at 0", "relu"))
    ):
        yield f"`{name_}` {phrase}", t.replace(node, value=call(op, value))


def _there_and_back(value: t.Expr, dtype: str) -> t.Call:
    narrow = call("cast", value, dtype=string(value, dtype))
    return call("cast", narrow, dtype=string(value, "float32"))


BFLOAT16 = "rounded to bfloat16"

SPOILS: dict[str, Callable[[t.Expr], t.Expr]] = {
    "negated": lambda value: call("neg", value),
    "doubled": lambda value: binary("*", value, number(value, 2)),
    "too large by 0.1%": lambda value: binary("*", value, number(value, 1.001)),
    "shifted by one": lambda value: binary("+", value, number(value, 1)),
    "squared": lambda value: binary("*", value, value),
    "bent by tanh": lambda value: call("tanh", value),
    HALF: lambda value: _there_and_back(value, "float16"),
    BFLOAT16: lambda value: _there_and_back(value, "bfloat16"),
    "reversed along its first axis": lambda value: call("flip", value, dims=number(value, 0)),
    "rolled along its first axis": lambda value: call(
        "roll", value, shifts=number(value, 1), dims=number(value, 0)
    ),
}
"""Ops that change almost any value, none of its shape. The last axis may be one long in every
model: behind a pool over all pixels, say.
"""


KINDS: Sequence[tuple[type, Alter]] = (
    (t.Call, _call), (t.Keyword, _keyword), (t.Binding, _binding), (t.Assign, _assign),
    (t.Build, _build),
)  # fmt: skip
