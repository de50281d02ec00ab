"""Ops whose declaration names the dimension of every axis: convolutions, matrix products, norms.

A dimension of inputs and results passes through, one of parameters and results is made here, one
that the results lack is summed over.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from ...grammar.tree import tree as t
from ..ops.call import OpCall
from ..ops.dims import ShapeSpec, compiled, names_of
from ..ops.opspec import OpSpec
from ..ops.spec import TensorSpec
from .declared import axis_exprs, factors, name_of, named, outputs
from .flow import Flow
from .labels import Labels, Vectors, along, couple, joined, keep_all, separated, spread
from .movement import axes_in
from .sizes import settings, shape_at, specs_of
from .units import KeepReason


@dataclass
class _Dims:
    """What one call says of its dimensions."""

    flow: Flow
    call: OpCall
    env: Mapping[str, Any]
    known: dict[str, Vectors] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)

    @cached_property
    def made(self) -> set[str]:
        """The dimensions of the results."""
        return outputs(self.call)

    def why(self, reason: str) -> KeepReason:
        return KeepReason(self.call.node.name, f"{self.call.op.name} {reason}")

    def meet(self, name: str, vectors: Vectors) -> None:
        """An axis of an input is this dimension."""
        self.read.add(name)
        if name not in self.known and not (name in self.bare and vectors):
            if vectors:
                self.known[name] = vectors
            else:
                self.bare.add(name)
            return
        why = self.why(f"reads it as {name}, like what has no features")
        couple(self.flow.atoms, self.known.get(name, ()), vectors, why)


def contracted(flow: Flow, call: OpCall) -> None:
    """Couples what the declaration names alike, makes new features, and labels parameters and
    results.
    """
    attrs = settings(call.attrs)
    dims = _Dims(flow, call, call.op.bind(call.shapes(), attrs).scope)
    operands = [
        (spec, value)
        for spec, value in zip(call.op.inputs, call.inputs, strict=True)
        if isinstance(value, fx.Node)
    ]
    for spec, value in operands:
        tracks = flow.separate(value)
        if spec.shape is None:
            continue
        _read(dims, spec.shape, tracks, shape_at(value), spec.name)
    _passed_on(dims)
    _mixed(dims, attrs)
    _summed(dims)
    _tell_inputs(dims)
    _write(dims)
    for spec, value in operands:
        if spec.shape is None:
            _beside(dims, spec.name, value)
    flow.sized[call.node] = {
        name: dims.known[spec.dim]
        for name, spec in call.op.attrs.items()
        if spec.dim is not None and spec.dim in dims.known
    }


def sloped(flow: Flow, call: OpCall) -> None:
    """Parameters with one number for all, or one for each position of the second axis."""
    tracks = flow.separate(call.inputs[0])
    for name, path in call.params.items():
        numbers = call.tensor(name)
        if path is not None and numbers is not None:
            flow.give(path, [along(tracks, 1) if numbers.numel() > 1 else ()])
    flow.set(call.node, tracks)


# -- axes ------------------------------------------------------------------------------------------


def _sizes(dims: _Dims, terms: list[t.Expr | str], extent: int) -> list[int]:
    if len(terms) == 1:
        return [extent]
    found = [compiled(term)(dims.env) for term in terms if not isinstance(term, str)]
    return [int(size) for size in found]


def _read(dims: _Dims, spec: ShapeSpec, tracks: Labels, shape: tuple[int, ...], name: str) -> None:
    for axis, expr in enumerate(axis_exprs(spec, len(shape))):
        vectors, terms = along(tracks, axis), factors(expr)
        if terms is None:
            keep_all(dims.flow.atoms, vectors, dims.why(f"computes with the size of `{name}`"))
            continue
        sizes = _sizes(dims, terms, shape[axis])
        parts = _parts(dims, vectors, sizes)
        for term, size, part in zip(terms, sizes, parts, strict=True):
            text = name_of(term)
            if text is None:
                keep_all(dims.flow.atoms, part, dims.why(f"reads `{name}` in {size} parts"))
            elif size > 1:
                dims.meet(text, part)


def _parts(dims: _Dims, vectors: Vectors, sizes: list[int]) -> list[Vectors]:
    """The factors of an axis that is a product."""
    large = [i for i, size in enumerate(sizes) if size > 1]
    if not vectors or not large:
        return [()] * len(sizes)
    if len(large) == 1:
        return [vectors if i == large[0] else () for i in range(len(sizes))]
    why = dims.why("reads it as groups")
    tracks = separated(dims.flow.atoms, tuple(v.reshape(sizes) for v in vectors), why)
    return [along(tracks, i) for i in range(len(sizes))]


# -- dimensions ------------------------------------------------------------------------------------


def _mixed(dims: _Dims, attrs: Mapping[str, Any]) -> None:
    """What each result depends on all of must stay."""
    rank = len(shape_at(dims.call.inputs[0]))
    for name in dims.call.op.mixes or ():
        hit = {name}
        if name in attrs:
            hit = {f"...{axis - rank}" for axis in axes_in(attrs[name], rank)}
        if "statistics" in dims.call.op.traits and name in _of_params(dims) | attrs.keys():
            dims.flow.statistics[dims.call.node] = None
            continue
        for key, vectors in dims.known.items():
            if key in hit or (name == "..." and key.startswith("...")):
                keep_all(dims.flow.atoms, vectors, dims.why("mixes it"))


def _of_params(dims: _Dims) -> set[str]:
    """The dimensions of the op's parameters."""
    specs = [spec.shape for spec in dims.call.op.params if spec.shape is not None]
    return set().union(*(named(spec, spec.least) for spec in specs))


def _beside(dims: _Dims, name: str, value: fx.Node) -> None:
    """An input whose axes are not declared: it broadcasts with the result, or nothing is known."""
    flow, node = dims.flow, dims.call.node
    tracks, shape = flow.separate(value), shape_at(value)
    made, rank = flow.values[node][0], len(shape_at(node))
    apart = _apart(dims.call.op)
    why = dims.why(f"has no dimensions for `{name}`")
    if apart is None or len(shape) > rank:
        keep_all(flow.atoms, (*tracks, *made), why)
        return
    for axis, extent in enumerate(shape):
        if extent > 1 and axis < len(shape) - apart:
            couple(flow.atoms, along(tracks, axis), along(made, axis + rank - len(shape)), why)
        elif extent > 1:
            keep_all(flow.atoms, along(tracks, axis), why)


def _apart(op: OpSpec) -> int | None:
    """How many axes at the end are none of the result's, where an input without declared axes
    broadcasts with it; None where that is not said.
    """
    return 0 if "addend" in op.traits else 2 if "mask" in op.traits else None


def _tell_inputs(dims: _Dims) -> None:
    """Parameters that the op reads like any value: `x @ w`."""
    made = dims.made
    pairs = zip(dims.call.op.inputs, dims.call.inputs, strict=True)
    for spec, value in pairs:
        if spec.shape is None or not isinstance(value, fx.Node) or value.op != "get_attr":
            continue
        for axis, expr in enumerate(axis_exprs(spec.shape, len(shape_at(value)))):
            role = "writes" if {name_of(term) for term in factors(expr) or ()} & made else "reads"
            dims.flow.roles.setdefault((str(value.target), axis), role)


def _passed_on(dims: _Dims) -> None:
    """An axis whose new size is none is that of the input: `output_size = none`."""
    op, source, found = dims.call.op, dims.call.inputs[0], specs_of(dims.call.node)[0]
    first, made = op.inputs[0].shape if op.inputs else None, op.outputs[0]
    if first is None or made is None or found is None:
        return
    before, after = axis_exprs(first, len(shape_at(source))), axis_exprs(made, len(found.shape))
    for pair in zip(reversed(before), reversed(after), strict=False):
        old, new = map(name_of, pair)
        if new is not None and dims.env.get(new, 0) is None and old in dims.known:
            dims.known[new] = dims.known.pop(old)


def _summed(dims: _Dims) -> None:
    kept = dims.made
    items = [item for item in dims.call.op.decl.items if isinstance(item, t.OpDim)]
    items = [item for item in items if dims.env.get(item.name.text, 0) is not None]
    computed = {name for item in items for name in (item.name.text, *names_of(item.value))}
    running = {name for name in dims.known if name == "N" or name.startswith("...")}
    for name, vectors in dims.known.items():
        if name in computed:
            keep_all(dims.flow.atoms, vectors, dims.why(f"reads windows of it, as its axis {name}"))
        elif name in running and dims.call.attrs.get("training"):
            keep_all(dims.flow.atoms, vectors, dims.why("takes statistics of the batch over it"))
        elif name not in kept and not _sums(dims.call.op, name):
            keep_all(dims.flow.atoms, vectors, dims.why(f"reads all of {name}"))
        elif name not in kept:
            dims.flow.contracted[dims.call.node] = None


def _sums(op: OpSpec, name: str) -> bool:
    """Whether zeros along a dimension add nothing."""
    return "linear_in_x" in op.traits or name in op.sums


def _write(dims: _Dims) -> None:
    """Parameters and results get the features of their dimensions; what only they have is new."""
    op, made = dims.call.op, dims.made
    for spec in op.params:
        path, tensor = dims.call.params[spec.name], dims.call.tensor(spec.name)
        if path is not None and tensor is not None and spec.shape is not None:
            _tell_roles(dims, path, spec.shape, tensor.shape)
            dims.flow.give(path, _labelled(dims, spec.shape, tensor.shape, made))
            if _reads_itself(spec.shape, tensor.ndim):
                dims.flow.recurrent.setdefault(dims.call.node, []).append(spec.name)
    results = [_result(dims, i, spec) for i, spec in enumerate(specs_of(dims.call.node))]
    dims.flow.set(dims.call.node, *results)


def _tell_roles(dims: _Dims, path: str, spec: ShapeSpec, shape: Sequence[int]) -> None:
    """What the op does along each axis of a parameter, by the dimensions with more than one
    position that the axis is made of.
    """
    made = dims.made
    for axis, expr in enumerate(axis_exprs(spec, len(shape))):
        terms = factors(expr) or []
        pairs = zip(terms, _sizes(dims, terms, shape[axis]) if terms else (), strict=True)
        names = {name_of(term) for term, size in pairs if size > 1} - {None}
        role = "reads" if not names & made else "writes" if names & made - dims.read else "rides"
        if axis == len(shape) - 1 and _reads_itself(spec, len(shape)):
            role = "reads"
        dims.flow.roles.setdefault((path, axis), role)


def _reads_itself(spec: ShapeSpec, rank: int) -> bool:
    """Whether the weight leads from a dimension to itself, from one step of time to the next: its
    last axis is summed over.
    """
    *firsts, last = axis_exprs(spec, rank)
    made = {name_of(term) for expr in firsts for term in factors(expr) or ()}
    return any(name_of(term) in made for term in factors(last) or () if name_of(term) is not None)


def _result(dims: _Dims, index: int, found: TensorSpec | None) -> Labels:
    """The tracks of a result. Where its declaration has no dimensions, all features must stay."""
    declared = dims.call.op.outputs[index]
    if found is not None and declared is not None:
        return joined(_labelled(dims, declared, found.shape, set()))
    if _is_read(dims.call.node, index):
        for vectors in dims.known.values():
            keep_all(dims.flow.atoms, vectors, dims.why(f"has no dimensions for result {index}"))
    return ()


def _is_read(node: fx.Node, index: int) -> bool:
    """Whether a result is used: by itself, or with all others."""
    value = node.meta.get("val")
    if not isinstance(value, (tuple, list)) or value[index] is None:
        return not isinstance(value, (tuple, list))
    return any(user.target is not operator.getitem or user.args[1] == index for user in node.users)


def _labelled(dims: _Dims, spec: ShapeSpec, shape: Sequence[int], fresh: set[str]) -> list[Vectors]:
    """The vectors of each axis of a parameter or result."""
    exprs = axis_exprs(spec, len(shape))
    return [_made(dims, expr, int(n), fresh) for expr, n in zip(exprs, shape, strict=True)]


def _made(dims: _Dims, expr: t.Expr | str, extent: int, fresh: set[str]) -> Vectors:
    """The vectors of one axis, by the dimensions that it is a product of."""
    terms = factors(expr)
    if terms is None or extent < 2:
        return ()
    sizes = _sizes(dims, terms, extent)
    found: list[Tensor] = []
    for at, (term, size) in enumerate(zip(terms, sizes, strict=True)):
        name = name_of(term)
        if name is None or size < 2:
            continue
        if name in fresh and name not in dims.known and name not in dims.bare:
            dims.known[name] = (dims.flow.atoms.fresh(size),)
        found += spread(dims.known.get(name, ()), sizes, at)
    return tuple(found)
