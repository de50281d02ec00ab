"""What the generator fills in around a pattern: operands that it leaves open, and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ....grammar.checks.kind import DTYPES
from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...ops.dims import REST, DeclaredAxis, ShapeSpec, shape_spec
from ...ops.opspec import InputSpec, OpSpec, ParamSpec
from ...rules.pattern import PatternOp
from ...rules.rule import CompiledRule
from ..choices.source import Unsuitable
from .builder import GraphBuilder
from .pattern_builder import Planted
from .settings import is_scale, kind_of_number, laid_out, sample, scales, weight
from .sizes import KERNEL, Extents

Kind = str | torch.dtype
"""What a tensor is made of: f, i (indices), b, or whole numbers of a type."""


BESIDE = ("tensor", "constant", "number", "channels", "features")
"""Forms of the second operand of an op whose operands broadcast."""


class Filling:
    """Draws values and weights for one instance of a rule's left side.

    planted: the instance so far. names: what dimensions, attributes and arguments of the rule stand
    for so far. clauses: shape clauses by path. chosen: the pattern's ops, and which op each is.
    odd: the value whose shape clause is to be violated. dtype: that of new weights.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        rule: CompiledRule,
        planted: Planted,
        clauses: Mapping[str, t.Type],
        chosen: Sequence[tuple[PatternOp, OpSpec]],
        odd: str = "",
    ) -> None:
        self.builder, self.source, self.planted = builder, builder.source, planted
        self.clauses, self.chosen, self.odd = clauses, chosen, odd
        self.names: dict[str, Any] = {**rule.args}
        hints = [v for v in rule.args.values() if isinstance(v, int) and not isinstance(v, bool)]
        self.extents = Extents(builder.source, hints)
        self.dtype = builder.dtype

    def free(
        self, name: str, spec: InputSpec, scope: dict[str, Any], lead: tuple[int, ...] | None
    ) -> Any:
        """A value that the pattern does not produce. `lead` is the shape of the operand before it,
        where both broadcast.
        """
        clause = self.clauses.get(name)
        again = self._again(clause, spec, scope, None if clause is not None else lead)
        if again is not None:
            return again
        if lead is not None and clause is None:
            return self._beside(name, spec, lead)
        for node in self.builder.offers:
            if self.source.chance(80) and self._takes(node, clause, spec, scope):
                return node
        shape, kind = self._shape(name, clause, spec, scope), self._kind(name, clause, spec)
        if self.source.chance(8):
            return self._constant(self._numbers(name, kind, shape))
        return self._input(kind, shape)

    def _input(self, kind: Kind, shape: Sequence[int]) -> fx.Node:
        value = sample(kind, shape, self.builder.generator)
        return self.builder.around(self.builder.input(self._laid_out(value)))

    def _constant(self, value: Tensor) -> fx.Node:
        return self.builder.constant(self._laid_out(value))

    def _laid_out(self, value: Tensor) -> Tensor:
        wide = value.is_floating_point() and self.builder.dtype == torch.float64
        return laid_out(self.source, value.double() if wide else value)

    def _numbers(self, name: str, kind: Kind, shape: Sequence[int]) -> Tensor:
        generator = self.builder.generator
        if kind == "f":
            return weight(self.source, name, shape, generator)
        return sample(kind, shape, generator)

    # -- operands that are there already -----------------------------------------------------------

    def _again(
        self,
        clause: t.Type | None,
        spec: InputSpec,
        scope: dict[str, Any],
        lead: tuple[int, ...] | None,
    ) -> fx.Node | None:
        """Now and then a value of the instance: two names of a pattern may be one value."""
        known = dict.fromkeys(v for v in self.planted.values.values() if isinstance(v, fx.Node))
        if not known or not self.source.chance(6):
            return None
        before = dict(self.names)
        fit = []
        for node in known:
            if self._takes(node, clause, spec, dict(scope), lead):
                fit.append(node)
            self.names.clear()
            self.names.update(before)
        if not fit:
            return None
        chosen = self.source.choice(fit)
        self._takes(chosen, clause, spec, scope, lead)
        return chosen

    def _takes(
        self,
        node: fx.Node,
        clause: t.Type | None,
        spec: InputSpec,
        scope: dict[str, Any],
        lead: tuple[int, ...] | None = None,
    ) -> bool:
        """Whether a value that is there already can be the operand; binds dimensions if so."""
        value = self.builder.real[node]
        if not isinstance(value, Tensor) or lead not in (None, tuple(value.shape)):
            return False
        asked = _asked(clause, spec) or ("f" if lead is None else "")
        if not _is(value, asked):
            return False
        names, tried = dict(self.names), dict(scope)
        try:
            if clause is not None and clause.dims is not None:
                self.extents.solve(clause_spec(clause), tuple(value.shape), names)
                names.pop(REST, None)
            if spec.shape is not None and lead is None:
                self.extents.solve(spec.shape, tuple(value.shape), tried)
        except (Unsuitable, LissomError):
            return False
        self.names.update(names)
        scope.update(tried)
        return True

    # -- new operands ------------------------------------------------------------------------------

    def _beside(self, name: str, spec: InputSpec, lead: tuple[int, ...]) -> Any:
        """The other operand of an elementwise op: a tensor that broadcasts, or a number. Further
        ones of `xs...` have the shape of the first.
        """
        form = self.source.choice(("tensor",) if spec.variadic else BESIDE)
        if form == "number":
            return self.source.choice([1, 2.0, 0.5, 0, 1.0, -1.0, 0.0, 3, -0.0, True])
        kind = self._drawn_kind(name, _asked(None, spec))
        if form == "tensor":
            return self._input(kind, lead)
        shape = tuple(size if self.source.chance(50) else 1 for size in lead)
        if form == "channels" and len(lead) > 1:
            shape = (1, lead[1], *(1,) * (len(lead) - 2))
        if form == "features":
            shape = lead[-1:]
        shape = shape[self.source.integer(0, len(shape)) :] if self.source.chance(30) else shape
        value = self._numbers("constant", kind, shape)
        double = kind == "f" and self.source.chance(20)
        return self._constant(value.double() if double else value)

    def _kind(self, name: str, clause: t.Type | None, spec: InputSpec) -> Kind:
        """What an operand is made of; where every type will do, mostly floating numbers."""
        behind = "" if name == self.odd else self._asked_behind(name)
        return self._drawn_kind(name, _asked(clause, spec) or behind)

    def _drawn_kind(self, name: str, asked: str) -> Kind:
        if asked or self.builder.floating:
            return asked or "f"
        other = self.source.chance(60 if name == self.odd else 20)
        return kind_of_number(self.source) if other else "f"

    def _asked_behind(self, name: str) -> str:
        """The class of numbers that the ops behind a value ask for."""
        for op, spec in self.chosen:
            if name not in op.reads:
                continue
            found = _asked(self.clauses.get(op.targets[0]), spec_at(spec, _place(op, name)))
            if not found and spec.decl.results[0].name in (None, "t"):
                found = self._asked_behind(op.targets[0])
            if found:
                return found
        return ""

    def _rank(self, name: str) -> int | None:
        """How many axes the ops behind a value will ask for, past those that keep its shape."""
        for op, spec in self.chosen:
            if name not in op.reads:
                continue
            declared = spec_at(spec, _place(op, name)).shape
            if declared is not None and not declared.rest:
                return declared.least
            found = self._rank(op.targets[0]) if _keeps_shape(spec) else None
            if found is not None:
                return found
        return None

    def _shape(
        self, name: str, clause: t.Type | None, spec: InputSpec, scope: dict[str, Any]
    ) -> tuple[int, ...]:
        rank = self._rank(name) or self.source.integer(1, 4)
        if clause is None or clause.dims is None:
            if spec.shape is None and spec.optional:
                return self._of_known(scope)
            if spec.shape is None:
                return tuple(self.extents.draw(axis) for axis in range(rank))
            return self.extents.of_spec(spec.shape, scope, max(0, rank - spec.shape.least))
        rest = rank - len([d for d in clause.dims if not isinstance(d, t.DimRest)])
        if spec.shape is not None and not spec.shape.rest:
            rest += spec.shape.least - rank
        shape = self.extents.of_clause(clause.dims, self.names, max(rest, 0))
        if spec.shape is not None:
            self.extents.solve(spec.shape, shape, scope)
        return shape

    def _of_known(self, scope: Mapping[str, Any]) -> tuple[int, ...]:
        """A shape made of extents that the other operands have: that of a mask, say."""
        known = [size for size in scope.values() if isinstance(size, int)]
        axes = range(self.source.choice((2, 1, 3)))
        return tuple(self.source.choice(known) for _ in axes) if known else ()

    # -- weights -----------------------------------------------------------------------------------

    def weights(
        self, op: PatternOp, spec: OpSpec, scope: dict[str, Any]
    ) -> dict[str, Tensor | None]:
        handle = op.source.handle.text if op.source.handle is not None else ""
        measured = self.source.chance(85)  # statistics come together
        found: dict[str, Tensor | None] = {}
        for param in spec.params:
            clause = self.clauses.get(f"{handle}.{param.name}")
            drawn = measured if param.name.startswith("running_") else self.source.chance(65)
            there = not param.optional or clause is not None or drawn
            whole = any(each.kind in DTYPES for each in spec.params)
            found[param.name] = self._param(param, clause, scope, whole) if there else None
        return found

    def _param(
        self, param: ParamSpec, clause: t.Type | None, scope: dict[str, Any], whole: bool
    ) -> Tensor:
        """`whole`: the weights of the op are whole numbers."""
        if param.shape is None:
            raise Unsuitable(f"nothing says the shape of {param.name}")
        if clause is not None and clause.dims is not None:
            self._align(param.shape, clause.dims, scope)
        shape = self.extents.of_spec(param.shape, scope, 0, weight=True)
        if 0 in shape:
            raise Unsuitable(f"nothing is in {param.name}")
        if param.kind in DTYPES:
            return laid_out(self.source, sample(param.kind, shape, self.builder.generator))
        if whole and is_scale(param.name):
            return scales(self.source, shape, self.builder.generator).to(self.dtype)
        value = weight(self.source, param.name, shape, self.builder.generator)
        value = value * 4 if whole else value  # as large as sums of codes are
        return laid_out(self.source, value).to(self.dtype)

    def _align(self, spec: ShapeSpec, dims: Sequence[t.Dim], scope: dict[str, Any]) -> None:
        """The rule's names for the axes of a weight and the op's, each told from the other."""
        for number, axis, dim in _named_axes(spec, dims):
            told = axis.names <= scope.keys()
            if not told and number >= 2 and isinstance(dim, t.Name):
                self.names.setdefault(dim.text, self.source.choice(KERNEL))
            if told and isinstance(dim, t.Name) and dim.text not in self.names:
                self.names[dim.text] = axis.evaluate(scope)
            if not told:
                self.extents.solve_axis(
                    axis, self.extents.of_clause((dim,), self.names, 0)[0], scope
                )


def _named_axes(spec: ShapeSpec, dims: Sequence[t.Dim]) -> list[tuple[int, DeclaredAxis, t.Dim]]:
    """The place, the declared size and the rule's word for each axis; none for what `...` covers.

    Raises Unsuitable where the clause has another number of axes.
    """
    rest = next((i for i, dim in enumerate(dims) if isinstance(dim, t.DimRest)), None)
    behind = 0 if rest is None else len(dims) - rest - 1
    covered = len(spec.before) - len(dims) + (rest is not None)
    if covered < 0 or (rest is None and covered):
        raise Unsuitable(spec.owner)
    places = range(len(spec.before))
    ends = places if rest is None else (*places[:rest], *places[len(places) - behind :])
    words = [dim for dim in dims if not isinstance(dim, t.DimRest)]
    return [(place, spec.before[place], dim) for place, dim in zip(ends, words, strict=True)]


def clause_spec(clause: t.Type) -> ShapeSpec:
    """A rule's shape clause as the declaration of a shape. Raises where it holds a range."""
    found = shape_spec("clause", clause)
    assert found is not None
    return found


def dtype_of(values: tuple[Any, ...]) -> torch.dtype:
    """The precision of the first floating operand: that of the op's weights."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    return next((v.dtype for v in tensors if v.is_floating_point()), torch.float32)


def _asked(clause: t.Type | None, spec: InputSpec) -> str:
    """What a clause or else a declaration asks for: the class of numbers f, i or b, or their type;
    "" for any.
    """
    if spec.kind in DTYPES:
        return spec.kind
    asked = (clause.name if clause is not None else None, spec.kind)
    return next((kind for kind in asked if kind in ("f", "i", "b")), "")


def _is(value: Tensor, asked: str) -> bool:
    """Whether the numbers of a value are what is asked for."""
    return asked in ("", _class_of(value), str(value.dtype).removeprefix("torch."))


def _class_of(value: Tensor) -> str:
    if value.dtype == torch.bool:
        return "b"
    return "f" if value.is_floating_point() else "i"


def _place(op: PatternOp, name: str) -> int:
    """The number of the operand that is this value."""
    given = [o.text if isinstance(o, t.Name) else "" for o in op.operands]
    return given.index(name)


def _keeps_shape(spec: OpSpec) -> bool:
    return bool(spec.traits & {"elementwise", "normalises"})


def spec_at(spec: OpSpec, index: int) -> InputSpec:
    if index < len(spec.inputs):
        return spec.inputs[index]
    return spec.inputs[-1]


def gathered(spec: OpSpec, values: list[Any]) -> tuple[Any, ...]:
    """Operands as the op's inputs: further ones of a variadic op as one tuple, absent ones None."""
    at = next((i for i, item in enumerate(spec.inputs) if item.variadic), None)
    if at is not None:
        return (*values[:at], tuple(values[at:]))
    return (*values, *(None,) * (len(spec.inputs) - len(values)))
