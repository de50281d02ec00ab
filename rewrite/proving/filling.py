"""What the generator fills in around a pattern: operands that it leaves open, and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar import tree as t
from ...grammar.diagnostics import LissomError
from ..dims import REST, ShapeSpec, shape_spec
from ..opspec import InputSpec, OpSpec, ParamSpec
from ..pattern import PatternOp
from ..rule import Rule
from .settings import weight
from .sizes import KERNEL, Extents
from .soil import Soil
from .source import Unsuitable


class Filling:
    """Draws values and weights for one instance of a rule's left side.

    names: what dimensions, attributes and arguments of the rule stand for so far. clauses: the
    rule's shape clauses by path. chosen: which op each pattern op is. dtype: that of new weights.
    """

    def __init__(
        self, soil: Soil, rule: Rule, clauses: Mapping[str, t.Type], chosen: Mapping[int, OpSpec]
    ) -> None:
        self.soil, self.source, self.rule = soil, soil.source, rule
        self.clauses, self.chosen = clauses, chosen
        self.names: dict[str, Any] = {**rule.args}
        hints = [v for v in rule.args.values() if isinstance(v, int) and not isinstance(v, bool)]
        self.extents = Extents(soil.source, hints)
        self.dtype = torch.float32

    def free(
        self, name: str, spec: InputSpec, scope: dict[str, Any], lead: tuple[int, ...] | None
    ) -> Any:
        """A value that the pattern does not produce."""
        clause = self.clauses.get(name)
        if lead is not None and clause is None:
            return self._beside(lead)
        for node in self.soil.offers:
            if self.source.chance(80) and self._takes(node, clause, spec, scope):
                return node
        shape = self._shape(name, clause, spec, scope)
        kind = next(
            (k for k in (clause.name if clause else None, spec.kind) if k in ("f", "i", "b")), "f"
        )
        if self.source.chance(8) and kind == "f":
            return self.soil.constant(weight(self.source, name, shape, self.soil.generator))
        return self.soil.around(self.soil.input(kind, shape))

    def _takes(
        self, node: fx.Node, clause: t.Type | None, spec: InputSpec, scope: dict[str, Any]
    ) -> bool:
        """Whether a value that is there already can be the operand; binds dimensions if so."""
        value = self.soil.real[node]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        names, tried = dict(self.names), dict(scope)
        try:
            if clause is not None and clause.dims is not None:
                self.extents.solve(clause_spec(clause), tuple(value.shape), names)
                names.pop(REST, None)
            if spec.shape is not None:
                self.extents.solve(spec.shape, tuple(value.shape), tried)
        except (Unsuitable, LissomError):
            return False
        self.names.update(names)
        scope.update(tried)
        return True

    def _beside(self, lead: tuple[int, ...]) -> Any:
        """The other operand of an elementwise op: a tensor that broadcasts, or a number."""
        kind = self.source.choice(("tensor", "constant", "number", "channels", "features"))
        if kind == "number":
            return self.source.choice([1, 2.0, 0.5, 0, 1.0, -1.0, 0.0, 3])
        if kind == "tensor":
            return self.soil.around(self.soil.input("f", lead))
        shape = tuple(size if self.source.chance(50) else 1 for size in lead)
        if kind == "channels" and len(lead) > 1:
            shape = (1, lead[1], *(1,) * (len(lead) - 2))
        if kind == "features":
            shape = lead[-1:]
        shape = shape[self.source.integer(0, len(shape)) :] if self.source.chance(30) else shape
        value = weight(self.source, "constant", shape, self.soil.generator)
        return self.soil.constant(value.double() if self.source.chance(10) else value)

    def _rank(self, name: str) -> int | None:
        """How many axes the ops behind a value will ask for, past those that keep its shape."""
        for op in self.rule.pattern.ops:
            if name not in op.reads:
                continue
            spec = self.chosen[op.index]
            declared = spec_at(spec, op.reads.index(name)).shape
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
            found[param.name] = self._param(param, clause, scope) if there else None
        return found

    def _param(self, param: ParamSpec, clause: t.Type | None, scope: dict[str, Any]) -> Tensor:
        if param.shape is None:
            raise Unsuitable(f"nothing says the shape of {param.name}")
        if clause is not None and clause.dims is not None:
            self._align(param.shape, clause.dims, scope)
        shape = self.extents.of_spec(param.shape, scope, 0, weight=True)
        return weight(self.source, param.name, shape, self.soil.generator).to(self.dtype)

    def _align(self, spec: ShapeSpec, dims: Sequence[t.Dim], scope: dict[str, Any]) -> None:
        """The rule's names for the axes of a weight and the op's, each told from the other."""
        if len(dims) != len(spec.before):
            raise Unsuitable(spec.owner)
        for number, (axis, dim) in enumerate(zip(spec.before, dims, strict=True)):
            told = axis.names <= scope.keys()
            if not told and number >= 2 and isinstance(dim, t.Name):
                self.names.setdefault(dim.text, self.source.choice(KERNEL))
            if told and isinstance(dim, t.Name) and dim.text not in self.names:
                self.names[dim.text] = axis.evaluate(scope)
            if not told:
                self.extents.solve_axis(
                    axis, self.extents.of_clause((dim,), self.names, 0)[0], scope
                )


def clause_spec(clause: t.Type) -> ShapeSpec:
    """A rule's shape clause as the declaration of a shape. Raises where it holds a range."""
    found = shape_spec("clause", clause)
    assert found is not None
    return found


def dtype_of(values: tuple[Any, ...]) -> torch.dtype:
    """The precision of the first floating operand: that of the op's weights."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    return next((v.dtype for v in tensors if v.is_floating_point()), torch.float32)


def _keeps_shape(spec: OpSpec) -> bool:
    return bool(spec.traits & {"elementwise", "normalises"}) or spec.name == "batch_norm"


def spec_at(spec: OpSpec, index: int) -> InputSpec:
    if index < len(spec.inputs):
        return spec.inputs[index]
    return spec.inputs[-1]
