"""Unifying the shapes and attributes a pattern names with those of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ...grammar.diagnostics import LissomError
from ...grammar.tree import tree as t
from ...grammar.tree.fold import literal
from ..ops.call import OpCall
from ..ops.spec import TensorSpec
from ..rules.binding import SHAPES, Bindings, NoMatch
from ..rules.pattern import Pattern
from ..rules.scope import ParamRef, Scope
from ..rules.state import State

_UNKNOWN = " is not known"
_LATER = "later"
"""The code of a miss that another clause may still turn into a match."""

_CLASSES = {
    "f": lambda dtype: dtype.is_floating_point,
    "i": lambda dtype: not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool,
    "b": lambda dtype: dtype == torch.bool,
    "t": lambda dtype: True,
}


def match_shapes(
    state: State, scope: Scope, bindings: Bindings, pattern: Pattern
) -> NoMatch | None:
    """Binds dimension names and attribute names into `scope`, or says which of them does not fit.

    Attribute expressions may name dimensions and dimensions may name attributes, so literals and
    fresh names come first, shapes second and the remaining attribute expressions last.
    """
    late: list[tuple[t.Keyword, OpCall]] = []
    for op in pattern.ops:
        for call in _calls(bindings, op.index):
            for keyword in op.source.attrs:
                misfit = _attribute(scope, keyword, call, late)
                if misfit is not None:
                    return misfit
    misfit = _shapes(scope, pattern.shapes)
    if misfit is not None:
        return misfit
    return next(
        (m for keyword, call in late if (m := _compare(scope, keyword, call)) is not None), None
    )


def _shapes(scope: Scope, clauses: Sequence[t.ShapePattern]) -> NoMatch | None:
    """A size may be an expression of names that a later clause binds: such clauses are read again
    at the end.
    """
    again: list[t.ShapePattern] = []
    for clause in clauses:
        misfit = _shape(scope, clause)
        if misfit is not None and misfit.code != _LATER:
            return misfit
        again += [clause] if misfit is not None else []
    misfit = next((m for clause in again if (m := _shape(scope, clause)) is not None), None)
    if misfit is not None:
        misfit.code = ""
    return misfit


def _calls(bindings: Bindings, index: int) -> list[OpCall]:
    return bindings.chains.get(index) or ([bindings.ops[index]] if index in bindings.ops else [])


def _attribute(
    scope: Scope, keyword: t.Keyword, call: OpCall, late: list[tuple[t.Keyword, OpCall]]
) -> NoMatch | None:
    name, value = keyword.name.text, keyword.value
    if name not in call.attrs:
        return _miss(keyword, call, f"{call.op.name} has no attribute `{name}`")
    if isinstance(value, t.Name) and value.text not in scope.names:
        scope.names[value.text] = call.attrs[name]
        return None
    if literal(value) is None and not isinstance(value, t.Constant):
        late.append((keyword, call))
        return None
    return _compare(scope, keyword, call)


def _compare(scope: Scope, keyword: t.Keyword, call: OpCall) -> NoMatch | None:
    name = keyword.name.text
    wanted, found = scope.number(keyword.value), call.attrs[name]
    if same(found, wanted):
        return None
    return _miss(keyword, call, f"{name} = {found}, not {wanted}")


def same(found: Any, wanted: Any) -> bool:
    """Equality of attribute values; a number stands for a pair of it, a word for a dtype."""
    if isinstance(found, torch.dtype) and isinstance(wanted, str):
        return str(found) == f"torch.{wanted}"
    if isinstance(found, (tuple, list)) and not isinstance(wanted, (tuple, list)):
        return all(item == wanted for item in found)
    if isinstance(found, (tuple, list)):
        return tuple(found) == tuple(wanted)
    return found is wanted if found is None or wanted is None else found == wanted


def _miss(keyword: t.Keyword, call: OpCall, text: str) -> NoMatch:
    return NoMatch(SHAPES, 0, lambda: text, keyword.span, call.node)


def _shape(scope: Scope, clause: t.ShapePattern) -> NoMatch | None:
    if scope.names[clause.path.parts[0].text] is None:
        return None
    spec, node = _spec(scope, clause.path)
    if spec is None:
        return NoMatch(
            SHAPES, 1, lambda: f"`{clause.path}` has no known shape here", clause.span, node
        )
    kind = _CLASSES[clause.type.name or "t"]
    if not kind(spec.dtype):
        return NoMatch(SHAPES, 1, lambda: f"`{clause.path}` is {spec.dtype}", clause.span, node)
    text = _unify(scope, clause.type.dims or (), spec.shape)
    if text is None:
        return None
    code = _LATER if text.endswith(_UNKNOWN) else ""
    return NoMatch(
        SHAPES, 2, lambda: f"`{clause.path}` is {list(spec.shape)}: {text}", clause.span, node, code
    )


def _spec(scope: Scope, path: t.Path) -> tuple[TensorSpec | None, fx.Node | None]:
    value = scope.names[path.parts[0].text]
    if isinstance(value, OpCall):
        ref = scope.param(value, path.parts[1].text)
        return (None if ref is None else _spec_of(ref)), value.node
    spec = value.meta.get("val") if isinstance(value, fx.Node) else None
    return (spec if isinstance(spec, TensorSpec) else None), value if isinstance(
        value, fx.Node
    ) else None


def _spec_of(ref: ParamRef) -> TensorSpec:
    return TensorSpec(ref.shape, ref.tensor.dtype)


def _unify(scope: Scope, dims: Sequence[t.Dim], shape: Sequence[int]) -> str | None:
    """Why the shape does not fit, or None. `...` takes what the other axes leave."""
    rest = next((i for i, dim in enumerate(dims) if isinstance(dim, t.DimRest)), None)
    if rest is None and len(dims) != len(shape):
        return f"{len(dims)} axes expected"
    if rest is not None:
        if len(shape) < len(dims) - 1:
            return f"at least {len(dims) - 1} axes expected"
        tail = len(dims) - rest - 1
        dims, shape = (
            [*dims[:rest], *dims[rest + 1 :]],
            [*shape[:rest], *shape[len(shape) - tail :]],
        )
    return next(
        (m for dim, size in zip(dims, shape, strict=True) if (m := _axis(scope, dim, int(size)))),
        None,
    )


def _axis(scope: Scope, dim: t.Dim, size: int) -> str | None:
    if isinstance(dim, t.Name) and dim.text == "_":
        return None
    if isinstance(dim, t.Name) and dim.text not in scope.names:
        scope.names[dim.text] = size
        return None
    if isinstance(dim, t.DimRange):
        low, high = scope.number(dim.low), scope.number(dim.high)
        return None if low <= size <= high else f"{size} is outside {low}..{high}"
    try:
        wanted = scope.number(dim)  # type: ignore[arg-type]
    except LissomError:
        return f"`{dim.span.text}`{_UNKNOWN}"
    return None if wanted == size else f"`{dim.span.text}` is {wanted}, found {size}"
