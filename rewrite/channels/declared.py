"""The dimensions that a declaration names the axes of a call by."""

from __future__ import annotations

from torch import fx

from ...grammar.tree import tree as t
from ..ops.call import OpCall
from ..ops.dims import ShapeSpec
from . import einsum
from .movement import axes_in
from .sizes import settings, shape_at, specs_of


def axis_exprs(spec: ShapeSpec, rank: int) -> list[t.Expr | str]:
    """The declared expression of each axis; those that `...` stands for count from the last."""
    rest = rank - len(spec.before) - len(spec.after)
    middle: list[t.Expr | str] = [f"...{i - rest}" for i in range(rest)]
    return [*(a.expr for a in spec.before), *middle, *(a.expr for a in spec.after)]


def factors(expr: t.Expr | str) -> list[t.Expr | str] | None:
    """The factors of a product of names and numbers; None for anything else."""
    if isinstance(expr, (str, t.Name, t.Number)):
        return [expr]
    if isinstance(expr, t.Binary) and expr.op == "*":
        left, right = factors(expr.left), factors(expr.right)
        return None if left is None or right is None else left + right
    return None


def name_of(term: t.Expr | str) -> str | None:
    if isinstance(term, str):
        return term
    return term.text if isinstance(term, t.Name) else None


def dims_in(expr: t.Expr | str) -> set[str]:
    """The dimensions that an axis is a product of."""
    return {name for term in factors(expr) or () if (name := name_of(term)) is not None}


def named(spec: ShapeSpec | None, rank: int) -> set[str]:
    if spec is None:
        return set()
    terms = [term for expr in axis_exprs(spec, rank) for term in factors(expr) or ()]
    return {name for name in map(name_of, terms) if name is not None}


def outputs(call: OpCall) -> set[str]:
    """The dimensions of the results."""
    pairs = zip(call.op.outputs, specs_of(call.node), strict=False)
    return set().union(*(named(s, len(v.shape)) for s, v in pairs if v is not None))


def summed_axes(call: OpCall) -> dict[fx.Node, set[int]]:
    """The axes of each input that the op sums over: the result lacks one of their dimensions."""
    if "equation" in call.op.traits:
        return einsum.summed_axes(call)
    left = outputs(call)
    found: dict[fx.Node, set[int]] = {}
    for spec, value in zip(call.op.inputs, call.inputs, strict=True):
        if isinstance(value, fx.Node) and spec.shape is not None:
            exprs = enumerate(axis_exprs(spec.shape, len(shape_at(value))))
            axes = {axis for axis, expr in exprs if dims_in(expr) - left}
            found.setdefault(value, set()).update(axes)
    return found


def statistic_axes(call: OpCall) -> set[int]:
    """The axes of its first input that the op takes statistics over."""
    rank, attrs = len(shape_at(call.inputs[0])), settings(call.attrs)
    if "reduction" in call.op.traits:
        return axes_in(attrs.get("dim"), rank)
    words = set(call.op.mixes or ())
    found = set().union(*(axes_in(attrs[name], rank) for name in words & attrs.keys()))
    spec = call.op.inputs[0].shape
    exprs = enumerate(axis_exprs(spec, rank)) if spec is not None else ()
    return found | {axis for axis, expr in exprs if _is_word(expr, words)}


def _is_word(expr: t.Expr | str, words: set[str]) -> bool:
    """Whether a word of `mixes` means this axis."""
    return bool(dims_in(expr) & words) or ("..." in words and isinstance(expr, str))
