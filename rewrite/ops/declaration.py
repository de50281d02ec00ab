"""From the text of an op declaration to its `OpSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...grammar.tree import tree as t
from .attributes import AttrSpec
from .dims import compiled, names_of, shape_spec
from .opspec import InputSpec, OpSpec, ParamSpec


def op_spec(decl: t.Op, own: Mapping[str, Any] | None = None) -> OpSpec:
    """Compile a declaration.

    `own` are torch names that the host program adds (see `callables.resolve`).
    """
    inputs = tuple(
        InputSpec(
            p.name.text, p.type.name or "t", p.optional, p.variadic, shape_spec(p.name.text, p.type)
        )
        for p in decl.inputs
    )
    params = tuple(
        ParamSpec(p.name.text, p.type.name or "t", p.optional, shape_spec(p.name.text, p.type))
        for p in decl.items
        if isinstance(p, t.OpParam)
    )
    attrs = {a.name.text: _attr(a) for a in decl.items if isinstance(a, t.OpAttr)}
    named = (i for i in decl.items if isinstance(i, t.OpTrait))
    traits = frozenset(word.text for item in named for word in item.names)
    results = 0 if "many" in traits else len(decl.results)
    return OpSpec(decl, decl.name.text, inputs, params, attrs, traits, results, own or {})


def _attr(attr: t.OpAttr) -> AttrSpec:
    default = attr.default
    dim = default.text if isinstance(default, t.Name) and default.is_dimension else None
    needs = names_of(default)
    return AttrSpec(attr.name.text, attr.type.name or "any", compiled(default), needs, dim)
