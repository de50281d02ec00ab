"""Builds an instance of a left side: its ops in the order of their values, with what they leave
open as it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ....grammar.tree.fold import literal
from ...ops.attributes import read_attr
from ...ops.dims import compiled
from ...ops.opspec import InputSpec, OpSpec
from ...rules.pattern import PatternOp
from ...rules.rule import CompiledRule
from ..choices.source import Unsuitable
from .builder import CONTEXT, ILLEGAL, GraphBuilder
from .filling import Filling, dtype_of, gathered, spec_at
from .pattern_builder import Planted
from .places import globs_at, inside, outside
from .settings import ANY, sections, setting, spelled
from .violated import check_spoilt, forbidden, is_literal, others, unlike, without


class Planter:
    """Builds one instance of a left side."""

    def __init__(self, builder: GraphBuilder, rule: CompiledRule, spoil: t.Node | None) -> None:
        self.builder, self.source = builder, builder.source
        self.rule, self.spoil = rule, spoil
        self.planted = Planted()
        self.patterns = [rule.pattern, *forbidden(rule, spoil)]
        self.ops = [op for pattern in self.patterns for op in pattern.ops]
        shapes = [clause for pattern in self.patterns for clause in pattern.shapes]
        clauses = {str(clause.path): clause.type for clause in shapes if clause is not spoil}
        odd = str(spoil.path) if isinstance(spoil, t.ShapePattern) else ""
        self.chosen = {op.index: self._choose(op) for op in self.ops}
        chosen = [(op, self.chosen[op.index]) for op in self.ops]
        self.filling = Filling(builder, rule, self.planted, clauses, chosen, odd)
        self.names = self.filling.names

    def plant(self) -> Planted:
        waiting = list(self.ops)
        inner = {name for op in self.ops for name in op.targets}
        while waiting:
            known = self.planted.values
            op = next(o for o in waiting if all(r in known or r not in inner for r in o.reads))
            waiting.remove(op)
            self._op(op)
        return without(self.planted, self.ops[len(self.rule.pattern.ops) :], self.rule)

    def _choose(self, op: PatternOp) -> OpSpec:
        names = sorted(op.ops) if op.ops is not None else CONTEXT
        if op.source.ops is self.spoil:
            names = others(self.builder.vocabulary, op)
        if not names:
            raise Unsuitable("no other op has this signature")
        return self.builder.vocabulary[self.source.choice(names)]

    # -- one op of the pattern ---------------------------------------------------------------------

    def _op(self, op: PatternOp) -> None:
        length = {"": (1,), "?": (1, 0), "*": (1, 0, 3)}[op.repeat]
        nodes: list[fx.Node] = []
        for _ in range(self.source.choice(length)):
            nodes.append(self._call(op, nodes[-1] if nodes else None))
        values = self.planted.values
        if not nodes:
            values[op.targets[0]] = self._existing(op)
            return
        if op.repeat == "*":
            self.planted.chains[op.index] = nodes
        else:
            self.planted.nodes[op.index] = nodes[0]
        held = self.builder.real[nodes[-1]]
        several = isinstance(held, (tuple, list))
        if several and len(held) < len(op.targets):
            raise Unsuitable(f"{len(held)} results, {len(op.targets)} names")
        for index, name in enumerate(op.targets):
            if name != "_":
                values[name] = self.builder.part(nodes[-1], index) if several else nodes[-1]

    def _existing(self, op: PatternOp) -> Any:
        """The operand of an optional op that is not there."""
        name = op.reads[0]
        if name not in self.planted.values:
            first = self.chosen[op.index].inputs[0]
            self.planted.values[name] = self.filling.free(name, first, {}, None)
        return self.planted.values[name]

    def _call(self, op: PatternOp, before: fx.Node | None) -> fx.Node:
        spec = self.chosen[op.index]
        scope = self._constrained(op, spec)
        inputs = self._inputs(op, spec, scope, before)
        self.filling.dtype = dtype_of(self.builder.value(_at_hand(inputs)))
        place = self._place(op)
        for last in (False, False, False, True):
            names, tried = dict(self.names), dict(scope)
            try:
                attrs = self._attrs(op, spec, tried, inputs)
                params = self.filling.weights(op, spec, tried)
                self._bind(op, attrs)
                given = self._completed(op, spec, inputs, params, attrs)
                return self.builder.op(spec, given, params, attrs, place)
            except Unsuitable:
                self.names.clear()
                self.names.update(names)
                if last:
                    raise
        raise AssertionError

    def _place(self, op: PatternOp) -> str:
        """The module path that clauses `in` ask for; "" where they leave it open."""
        clauses = globs_at(self.patterns, op)
        globs = [clause.glob for clause in clauses if clause is not self.spoil]
        if len(globs) < len(clauses):
            assert isinstance(self.spoil, t.SitePattern)
            return outside(self.source, self.spoil.glob, globs, self.builder.name())
        return inside(globs, self.builder.name()) if globs else ""

    # -- settings ----------------------------------------------------------------------------------

    def _constrained(self, op: PatternOp, spec: OpSpec) -> dict[str, Any]:
        """Dimensions that are settings with a value in the pattern, such as `groups = 1`."""
        scope: dict[str, Any] = {}
        for keyword in op.source.attrs:
            attr = spec.attrs.get(keyword.name.text)
            wanted = None if keyword is self.spoil else self._wanted(keyword)
            if attr is not None and attr.dim is not None and isinstance(wanted, int):
                scope[attr.dim] = wanted
        return scope

    def _wanted(self, keyword: t.Keyword) -> Any:
        """The value that the pattern asks for; None where it is open."""
        value = keyword.value
        if isinstance(value, t.Constant) or literal(value) is not None:
            return literal(value)
        if isinstance(value, t.Name):
            return self.names.get(value.text)
        try:
            return compiled(value)(self.names)
        except (LissomError, KeyError, TypeError, ArithmeticError):
            return None

    def _attrs(
        self, op: PatternOp, spec: OpSpec, scope: dict[str, Any], inputs: tuple[Any, ...]
    ) -> dict[str, Any]:
        first = self.builder.value(inputs[0]) if inputs else None
        first = first[0] if isinstance(first, tuple) and first else first
        shape = tuple(first.shape) if isinstance(first, Tensor) else ()
        asked = {k.name.text: k for k in op.source.attrs}
        defaults = spec.fill({}, [s.name for s in spec.inputs])
        attrs: dict[str, Any] = {}
        for name, attr in spec.attrs.items():
            keyword = asked.get(name)
            fixed = keyword is not None and keyword is not self.spoil
            if fixed and (is_literal(keyword) or self._wanted(keyword) is not None):
                attrs[name] = read_attr(attr, self._wanted(keyword))
            elif attr.dim is not None:
                attrs[name] = read_attr(attr, scope.get(attr.dim, defaults[name]))
            elif attr.is_size and attr.needs <= scope.keys():
                attrs[name] = read_attr(attr, attr.default(scope))
            else:
                spoilt = keyword is not None and keyword is self.spoil
                unlike = self._wanted(keyword) if spoilt else ANY
                more = len(spec.attrs) == 1, self.rule.hints
                drawn = setting(self.source, attr, defaults[name], shape, unlike, *more)
                attrs[name] = drawn if drawn is None else read_attr(attr, drawn)
            if keyword is not None and keyword is self.spoil:
                check_spoilt(attrs[name], self._wanted(keyword))
        if "many" in spec.traits and self.source.chance(70):
            fitting = sections(self.source, attrs, shape, len(op.targets))
            attrs |= {name: value for name, value in fitting.items() if name not in asked}
        return attrs

    def _bind(self, op: PatternOp, attrs: Mapping[str, Any]) -> None:
        for keyword in op.source.attrs:
            if isinstance(keyword.value, t.Name) and keyword.name.text in attrs:
                self.names.setdefault(keyword.value.text, attrs[keyword.name.text])

    # -- operands ----------------------------------------------------------------------------------

    def _inputs(
        self, op: PatternOp, spec: OpSpec, scope: dict[str, Any], before: fx.Node | None
    ) -> tuple[Any, ...]:
        wanted = self._operands(op, spec)
        found: list[Any] = [self._known(w) for w in wanted]
        if before is not None:
            found[0] = before
        specs = [spec_at(spec, index) for index in range(len(wanted))]
        broadcasts = "elementwise" in spec.traits and len(spec.inputs) > 1
        lead: tuple[int, ...] | None = None
        for value, declared in zip(found, specs, strict=True):
            real = self.builder.value(value) if isinstance(value, fx.Node) else None
            if isinstance(real, Tensor):
                lead = tuple(real.shape) if lead is None else lead
                if declared.shape is not None and not broadcasts and not declared.variadic:
                    self.filling.extents.solve(declared.shape, tuple(real.shape), scope)
        for index, value in enumerate(found):
            if value is _OPEN and _waits(specs[index], spec):
                found[index] = _WAITS
            elif value is _OPEN:
                beside = lead if broadcasts or specs[index].variadic else None
                found[index] = self._free(wanted[index], specs[index], scope, beside)
                real = self.builder.value(found[index])
                lead = tuple(real.shape) if lead is None and isinstance(real, Tensor) else lead
        self._bind_rest(op, [value for value in found if value is not _WAITS])
        return gathered(spec, found)

    def _completed(
        self,
        op: PatternOp,
        spec: OpSpec,
        inputs: tuple[Any, ...],
        params: Mapping[str, Any],
        attrs: Mapping[str, Any],
    ) -> tuple[Any, ...]:
        """Draws operands that have the shape of the result, which is known now."""
        if not any(value is _WAITS for value in inputs):
            return inputs
        named = [(s.name, v) for s, v in zip(spec.inputs, _at_hand(inputs), strict=False)]
        known = {**{name: self.builder.value(value) for name, value in named}, **params}
        shapes = {n: tuple(v.shape) for n, v in known.items() if isinstance(v, Tensor)}
        scope = self._solved(spec, shapes, attrs)
        wanted = [*op.operands, *(None,) * len(inputs)]
        return tuple(
            self._free(w, s, scope, None) if v is _WAITS else v
            for w, s, v in zip(wanted, spec.inputs, inputs, strict=False)
        )

    def _operands(self, op: PatternOp, spec: OpSpec) -> list[Any]:
        """The operands of the line; `xs...` as many as the op may have, and one more than asked for
        where that is to be violated.
        """
        wanted: list[Any] = list(op.operands)
        if wanted and isinstance(wanted[-1], t.Rest):
            wanted[-1:] = [wanted[-1]] * self._further(spec.inputs[len(wanted) - 1 :])
        return [*wanted, None] if op.source is self.spoil else wanted

    def _further(self, inputs: Sequence[InputSpec]) -> int:
        """How many values `xs...` stands for, where an op has these inputs left."""
        if not inputs or inputs[-1].variadic:
            return self.source.integer(1, 3)
        return self.source.integer(sum(not spec.optional for spec in inputs), len(inputs))

    def _free(
        self, wanted: Any, spec: InputSpec, scope: dict[str, Any], lead: tuple[int, ...] | None
    ) -> Any:
        """A value that the pattern does not produce, for an operand."""
        name = wanted.text if isinstance(wanted, t.Name) else "_"
        if name != "_" and name in self.planted.values:  # once more in the same line
            return self.planted.values[name]
        node = self.filling.free(name, spec, scope, lead)
        clauses = [clause for p in self.patterns for clause in p.sites if clause.name.text == name]
        globs = [clause.glob for clause in clauses if clause is not self.spoil]
        if globs and isinstance(node, fx.Node):
            node = self.builder.placed(node, globs)
        if name != "_":
            self.planted.values[name] = node
        return node

    def _solved(
        self, spec: OpSpec, shapes: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Every dimension of an op. Raises Unsuitable where one cannot be."""
        try:
            scope = dict(spec.bind(shapes, attrs).scope)
        except ILLEGAL as error:
            raise Unsuitable(str(error)) from error
        if any(scope.get(name, 1) < 1 for name in _computed(spec)):
            raise Unsuitable("a window is larger than what it moves over")
        return scope

    def _bind_rest(self, op: PatternOp, found: Sequence[Any]) -> None:
        if op.operands and isinstance(op.operands[-1], t.Rest):
            rest = tuple(found[len(op.operands) - 1 :])
            self.planted.values[op.operands[-1].name.text] = rest

    def _known(self, wanted: Any) -> Any:
        if wanted is self.spoil and isinstance(wanted, t.Expr):
            return self.source.choice(unlike(literal(wanted)))
        if isinstance(wanted, t.Name) and wanted.text != "_":
            return self.planted.values.get(wanted.text, _OPEN)
        if isinstance(wanted, t.Constant):
            return wanted.value
        value = literal(wanted) if isinstance(wanted, t.Expr) else None
        return _OPEN if value is None else spelled(self.source, value)


def _waits(operand: InputSpec, spec: OpSpec) -> bool:
    """Whether only settings and weights say the shape of an operand: that of the result, say."""
    return operand.shape is not None and bool(operand.shape.names & _computed(spec))


def _computed(spec: OpSpec) -> set[str]:
    """The dimensions that follow from others and from settings."""
    return {item.name.text for item in spec.decl.items if isinstance(item, t.OpDim)}


def _at_hand(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if value is _WAITS else value for value in inputs)


_OPEN: Any = object()
_WAITS: Any = object()
"""Operands of which nothing is known yet."""
