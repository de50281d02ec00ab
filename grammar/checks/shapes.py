"""A rule as a system of equations between sizes: one for each choice among its alternatives."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..algebra.symbolic import Poly, TooLarge, const
from ..algebra.unify import Mismatch, Shape, Solver
from ..diagnostics import Label
from ..tree import tree as t
from ..tree.clauses import bindings, moves
from .assumed import assume
from .declared import OpFacts, SymbolTable
from .instances import (
    WIDTHS,
    OpInstance,
    ShapeFault,
    apart,
    bad_input,
    choices,
    inputs_of,
    keeps_shape,
    low,
    never,
    ordered,
    unread,
    widened,
)
from .sides import Sides, SideStep
from .term import SCALAR, UNKNOWN, Term
from .terms import Terms, declared_shape, dimension, dimension_names
from .weights import check_weights


@dataclass(slots=True)
class ShapeModel:
    """Both sides of a rule for one choice of ops.

    `reals` are the rule's parameters in floats, `flags` the symbols that are 0 or 1, `extents` the
    output extents that costs treat as one symbol; `sampled` says that an equation was not proved.
    """

    rule: t.Rule
    sides: Sides
    known: SymbolTable
    ops: dict[int, str]
    solver: Solver = field(default_factory=Solver)
    left: list[OpInstance] = field(default_factory=list)
    right: list[OpInstance] = field(default_factory=list)
    before: dict[str, Shape] = field(default_factory=dict)
    after: dict[str, Shape] = field(default_factory=dict)
    faults: list[ShapeFault] = field(default_factory=list)
    topics: dict[object, ShapeFault] = field(default_factory=dict)
    reals: dict[str, float] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    extents: dict[str, Poly] = field(default_factory=dict)
    sampled: bool = False
    guarded: bool = True
    terms: Terms = field(init=False)

    def __post_init__(self) -> None:
        self.terms = Terms(self.solver, self.known, is_rule=True)

    def build(self) -> ShapeModel:
        self._params()
        self._names()
        for pattern in self.sides.shapes:
            if len(pattern.path.parts) == 1:
                self._value_shape(pattern)
        for step in ordered(self.sides.left):
            self._match(step)
        for pattern in self.sides.shapes:
            if len(pattern.path.parts) == 2:
                self._weight_shape(pattern)
        self._special()
        assume(self.rule, self.terms, equal=self.guarded)
        self.solver.settle()
        self._contradictions()
        self.solver.freeze()
        self._lets()
        self._perturb()
        self._rewrite()
        self.solver.settle()
        return self

    # -- the left side

    def _params(self) -> None:
        for param in self.rule.params:
            name = param.name.text
            if param.type.name == "int":
                self.terms.names[name] = Term((), self.solver.fresh(name))
            elif param.type.name in ("float", "frac"):
                default = param.default
                plain = isinstance(default, (t.Frac, t.Number))
                self.reals[name] = float(default.value) if plain else 0.5
                self.terms.names[name] = Term((), self.solver.fresh(name, 0))

    def _names(self) -> None:
        """Sizes that the rule names get their symbols first, so that messages show these names."""
        dims = [dim for pattern in self.sides.shapes for dim in pattern.type.dims or ()]
        for name in (name for dim in dims for name in dimension_names(dim)):
            dimension(self.terms, name, self.solver)

    def _special(self) -> None:
        for clause in self.rule.all(t.MatchDim):
            self.terms.names[clause.dim.text] = Term((), self.solver.fresh(clause.dim.text))
        for clause in self.rule.all(t.MatchParam):
            self.terms.names[clause.name.text] = Term((self.solver.rest(clause.name.text),))

    def value(self, name: str) -> Shape:
        """The shape of a matched value, unknown axes if no pattern says more."""
        shape = self.before.setdefault(name, (self.solver.rest(("value", name)),))
        self.terms.names.setdefault(name, Term(shape))
        return shape

    def _pattern_dims(self, type_: t.Type) -> Shape:
        return declared_shape(self.terms, type_, {}, self.solver)

    def _value_shape(self, pattern: t.ShapePattern) -> None:
        if pattern.type.dims is None:
            return
        fault = ShapeFault("P004", "the pattern can never match", (Label(pattern.type.span),))
        self.unify(self.value(pattern.path.parts[0].text), self._pattern_dims(pattern.type), fault)

    def _weight_shape(self, pattern: t.ShapePattern) -> None:
        node, name = (word.text for word in pattern.path.parts)
        term = self.terms.parts.get((node, name), UNKNOWN)
        if pattern.type.dims is None:
            return
        shape = self._pattern_dims(pattern.type)
        if term.shape is None:
            self.terms.parts[node, name] = Term(shape, presence=const(1))
            return
        op = self.ops[id(self.sides.handles[node])]
        facts = self.known.op(op)
        declared = facts.params[name] if facts and name in facts.params else None
        places = [Label(pattern.type.span, "the pattern says")]
        places += [Label(declared.type.span, f"declared by `{op}`")] if declared else []
        message = f"`{pattern.path}` never has this shape"
        self.unify(term.shape, shape, ShapeFault("S002", message, tuple(places)))

    def _match(self, step: SideStep) -> None:
        facts = self.known.op(self.ops.get(id(step), ""))
        if facts is None or step.repeat:
            self._chain(step, facts)
            return
        local = Terms(self.solver, self.known)
        for attr in facts.attrs.values():
            self._set_attr(local, attr, self._matched_attr(step, attr))
            self._part(step, attr.name.text, local.names[attr.name.text])
        weights = {}
        for name, param in facts.params.items():
            shape = declared_shape(local, param.type, {}, self.solver)
            presence = self.solver.fresh(f"has_{name}", 0) if param.optional else const(1)
            self.flags |= presence.symbols
            weights[name] = Term(shape, presence=presence)
            self._part(step, name, weights[name])
        found = self._apply(OpInstance(step, facts, local, weights, []), self.value, "P004")
        self.left.append(found)
        for name, shape in zip(step.results, found.results, strict=False):
            if name != "_":
                self.unify(self.value(name), shape, never(step))

    def _chain(self, step: SideStep, facts: OpFacts | None) -> None:
        """An op that may be absent: what has the shape of its input has it with or without it."""
        for name in step.results:
            self.value(name)
        same = facts is not None and keeps_shape(facts)
        if same and len(step.results) == len(step.reads) == 1:
            self.unify(self.value(step.results[0]), self.value(step.reads[0]), never(step))

    def _part(self, step: SideStep, name: str, term: Term) -> None:
        if step.handle:
            self.terms.parts[step.handle, name] = term

    def _matched_attr(self, step: SideStep, attr: t.OpAttr) -> Term:
        """What the pattern says about an attribute; a fresh name gets new symbols."""
        given, width = step.settings.get(attr.name.text), WIDTHS.get(attr.type.name or "", 0)
        if isinstance(given, t.Name) and given.text not in self.terms.names:
            term = self._new_attr(given.text, attr, width)
            self.terms.names[given.text] = term
            return term
        if given is None:
            return self._new_attr(attr.name.text, attr, width)
        return widened(self.terms.of(given), width)

    def _new_attr(self, name: str, attr: t.OpAttr, width: int) -> Term:
        least = 0 if attr.type.name == "bool" else low(attr.default)
        if width == 1:
            symbol = self.solver.fresh(name, least)
            self.flags |= symbol.symbols if attr.type.name == "bool" else set()
            return Term((), symbol)
        if width == 0:
            return SCALAR if attr.type.name in ("float", "any") else UNKNOWN
        names = [f"{name}.{i}" for i in range(width)]
        return Term(items=tuple(Term((), self.solver.fresh(n, least)) for n in names))

    def _set_attr(self, local: Terms, attr: t.OpAttr, term: Term) -> None:
        """`groups: int = G` makes the attribute and the dimension the same number."""
        local.names[attr.name.text] = term
        tied = isinstance(attr.default, t.Name) and attr.default.is_dimension
        if tied and term.number is not None:
            assert isinstance(attr.default, t.Name)
            local.names.setdefault(attr.default.text, term)

    def _contradictions(self) -> None:
        for demand in self.solver.pending:
            number = self.solver.resolve(demand.poly).constant
            if number not in (None, 0) and demand.topic in self.topics:
                fault = self.topics[demand.topic]
                reason = f"two sizes that differ by {abs(number)} are asked to be equal"
                self.faults.append(ShapeFault(fault.code, fault.message, fault.labels))
                self.faults[-1].message += f": {reason}"

    # -- an op on either side

    def _apply(self, inst: OpInstance, value: object, code: str) -> OpInstance:
        """Match the inputs against the declaration and derive the results."""
        assert callable(value)
        facts, rests, batches = inst.facts, {}, []
        given = list(inputs_of(inst.step, facts))
        spread = "elementwise" in facts.traits and len(given) > 1
        wide = "broadcasts" in facts.traits
        for param, operand in given:
            shape = value(operand) if isinstance(operand, str) else ()
            inst.inputs.append(shape)
            inst.local.names[param.name.text] = Term(shape)
            fixed = param.type.dims is not None and not spread and not param.variadic
            if isinstance(operand, str) and fixed:
                own = {} if wide else rests
                declared = declared_shape(inst.local, param.type, own, self.solver)
                self.unify(shape, declared, bad_input(inst, operand, code))
                batches += [own.get("...", ())] if wide else []
        for name, expr in facts.dims.items():
            inst.local.names[name] = Term((), dimension(inst.local, expr, self.solver))
        if spread:
            inst.results = [self._broadcast(inst, inst.inputs, code)]
        else:
            rests |= {"...": self._broadcast(inst, batches, code)} if wide else {}
            inst.results = [self._result(inst, i, r, rests) for i, r in enumerate(inst.types)]
        return inst

    def _broadcast(self, inst: OpInstance, shapes: list[Shape], code: str) -> Shape:
        topic = len(self.topics)
        self.topics[topic] = apart(inst, code)
        return self.solver.broadcast(shapes, topic)

    def _result(
        self, inst: OpInstance, index: int, type_: t.Type, rests: dict[str, Shape]
    ) -> Shape:
        variadic = any(p.variadic for p in inst.facts.inputs)
        if type_.dims is not None and not variadic:
            return declared_shape(inst.local, type_, rests, self.solver)
        shapes = [str(list(map(str, self.solver.shape(s)))) for s in inst.inputs]
        attrs = [str(inst.local.names.get(a, "")) for a in inst.facts.attrs]
        return (self.solver.rest((inst.facts.name, index, *shapes, *attrs)),)

    # -- the right side

    def _lets(self) -> None:
        for binding in bindings(self.rule):
            self._bind(binding)

    def _bind(self, binding: t.Binding) -> None:
        words = binding.targets
        term = self.terms.of(binding.value, words[0].text if len(words) == 1 else "")
        items = term.items if len(words) > 1 else (term,)
        for word, item in zip(words, items or (UNKNOWN,) * len(words), strict=False):
            if word.is_dimension and item.number is None:
                item = Term((), self.solver.fresh(word.text))
            self.terms.names[word.text] = item

    def _perturb(self) -> None:
        for move in moves(self.rule):
            if isinstance(move, t.Assign) and len(move.path.parts) == 2:
                self._assign(move)
            elif isinstance(move, t.Effect):
                self.terms.of(move.call)

    def _assign(self, move: t.Assign) -> None:
        node, name = (word.text for word in move.path.parts)
        target = self.terms.parts.get((node, name), UNKNOWN).shape
        given = self.terms.of(move.value).shape
        if target and given:
            message = f"`{move.path}` would change its shape"
            place = Label(move.value.span, "assigned here")
            self.unify(given, target, ShapeFault("S002", message, (place,)))

    def _rewrite(self) -> None:
        for step in self.sides.right:
            self._make(step)
        for target, source in self.sides.aliases.items():
            self.after[target] = self.new_value(source)

    def new_value(self, name: str) -> Shape:
        """The shape of a value that a build reads; a number of the rule has no axes."""
        known = self.terms.names.get(name, UNKNOWN)
        if name not in self.before and known.number is not None:
            return ()
        return self.after[name] if name in self.after else self.value(name)

    def _make(self, step: SideStep) -> None:
        facts, chain = self.known.op(self.sides.op_of(step, self.ops)), self.sides.chain(step)
        if facts is None or chain is not None:
            self.after |= unread(step, chain, self.value, self.new_value, self.solver)
            return
        local = Terms(self.solver, self.known)
        for attr in facts.attrs.values():
            self._set_attr(local, attr, self._built_attr(step, attr))
        weights = {name: self._built_weight(step, name) for name in facts.params}
        found = self._apply(OpInstance(step, facts, local, weights, []), self.new_value, "S002")
        check_weights(self, found)
        self.right.append(found)
        self.after |= dict(zip(step.results, found.results, strict=False))
        if step.handle:
            parts = {(step.handle, name): term for name, term in weights.items()}
            self.terms.parts |= parts | {(step.handle, a): local.names[a] for a in facts.attrs}

    def _built_attr(self, step: SideStep, attr: t.OpAttr) -> Term:
        given, width = step.settings.get(attr.name.text), WIDTHS.get(attr.type.name or "", 0)
        if given is not None:
            return widened(self.terms.of(given), width)
        if step.clone:
            return self.terms.parts.get((step.clone, attr.name.text), UNKNOWN)
        if isinstance(attr.default, t.Name) and attr.default.is_dimension:
            return Term((), self.solver.fresh(attr.name.text)) if width else UNKNOWN
        return widened(Terms(self.solver, self.known).of(attr.default), width)

    def _built_weight(self, step: SideStep, name: str) -> Term:
        if name in step.settings:
            return self.terms.of(step.settings[name])
        if step.clone:
            return self.terms.parts.get((step.clone, name), UNKNOWN)
        return Term(presence=const(0))

    def unify(self, left: Shape, right: Shape, fault: ShapeFault) -> None:
        self.topics[topic := len(self.topics)] = fault
        try:
            self.solver.unify(left, right, topic)
        except Mismatch:
            first, second = (len(self.solver.shape(shape)) for shape in (left, right))
            message = f"{fault.message}: {first} axes against {second}"
            self.faults.append(ShapeFault(fault.code, message, fault.labels))
        except TooLarge:
            pass  # what is too large to decide is sampled


def models(rule: t.Rule, both: Sides, known: SymbolTable) -> list[ShapeModel]:
    return [ShapeModel(rule, both, known, ops).build() for ops in choices(both)]
