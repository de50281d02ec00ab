"""Both sides of a rule as lists of steps: what the patterns match and what the builds make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..diagnostics import Span
from ..tree import tree as t
from ..tree.clauses import builds, typed
from .declared import OpFacts, SymbolTable

Operand = str | t.Expr | t.Rest | None
"""The name of a value, a literal, the rest of a variadic input, or None for `_`."""


@dataclass(slots=True)
class SideStep:
    """One op on one side. `clone` is the handle that a build copies, `like` what `from` names.

    `extra` is a positional argument for which the op has no attribute.
    """

    ops: tuple[str, ...]
    operands: list[Operand]
    settings: dict[str, t.Expr]
    results: tuple[str, ...]
    span: Span
    whole: Span
    handle: str = ""
    clone: str = ""
    like: str = ""
    shared: bool = False
    repeat: str = ""
    extra: t.Expr | None = None
    words: tuple[t.Word, ...] = ()
    keywords: dict[str, Span] = field(default_factory=dict)

    @property
    def is_wildcard(self) -> bool:
        return self.ops == ("_",)

    @property
    def reads(self) -> list[str]:
        """The values among the operands."""
        rest = [op.name.text for op in self.operands if isinstance(op, t.Rest)]
        return [op for op in self.operands if isinstance(op, str)] + rest


@dataclass
class Sides:
    """Both sides; what is derived from them is computed once, when `sides` has returned.

    `aliases` are the builds `y = x`; `odd` are builds that are neither an op nor an alias.
    """

    rule: t.Rule
    left: list[SideStep] = field(default_factory=list)
    right: list[SideStep] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    odd: list[t.Build] = field(default_factory=list)
    shapes: list[t.ShapePattern] = field(default_factory=list)

    @cached_property
    def produced(self) -> dict[str, SideStep]:
        return {name: step for step in self.left for name in step.results if name != "_"}

    @cached_property
    def ranged(self) -> frozenset[str]:
        """The values that the rule ranges over: they stay, and what reads them is given another."""
        return frozenset(clause.name.text for clause in self.rule.all(t.MatchValue))

    @cached_property
    def exchanged(self) -> frozenset[str]:
        """The values in whose place `perturb` gives others: `x := clamp(x)`, in rules over ops and
        over values.
        """
        moves = [m for p in self.rule.all(t.Perturb) for m in p.moves if isinstance(m, t.Assign)]
        names = (str(m.path) for m in moves if len(m.path.parts) == 1)
        return frozenset(names if self.rule.all(t.Match, t.MatchValue) else ())

    def op_of(self, step: SideStep, chosen: Mapping[int, str]) -> str:
        """The op that a build makes; that of the matched op if it is a copy."""
        source = self.handles.get(step.clone)
        return chosen.get(id(source), step.ops[0]) if source else step.ops[0]

    def chain(self, step: SideStep) -> SideStep | None:
        """The matched chain, or op that may be absent, that a build has once more."""
        source = self.handles.get(step.clone)
        return source if source is not None and source.repeat else None

    @cached_property
    def inner(self) -> set[str]:
        """Matched values that another matched op reads."""
        return {name for step in self.left for name in step.reads} & set(self.produced)

    @cached_property
    def outputs(self) -> list[str]:
        """Matched values that no other matched op reads: the rewrite must define them again."""
        inner = self.inner
        skipped = {*inner, "_"}
        return [name for step in self.left for name in step.results if name not in skipped]

    @cached_property
    def built(self) -> dict[str, SideStep | None]:
        """Every value that the rewrite defines; None for an alias."""
        made: dict[str, SideStep | None] = {n: step for step in self.right for n in step.results}
        return made | dict.fromkeys(self.aliases)

    @cached_property
    def constants(self) -> frozenset[str]:
        """The values of which a guard says `constant(k)`: after it they are numbers."""
        calls = [c for where in self.rule.all(t.Where) for c in t.walk(where)]
        named = [c for c in calls if isinstance(c, t.Call) and isinstance(c.function, t.Name)]
        asked = [c.args[0] for c in named if c.function.span.text == "constant" and c.args]
        return frozenset(arg.text for arg in asked if isinstance(arg, t.Name))

    @property
    def handles(self) -> dict[str, SideStep]:
        return {step.handle: step for step in self.left + self.right if step.handle}


def sides(rule: t.Rule, known: SymbolTable) -> Sides:
    """Lower the patterns and builds of a rule."""
    result = Sides(rule)
    for match in rule.all(t.Match):
        _add_patterns(result, match.patterns)
    result.shapes += map(typed, rule.all(t.MatchValue))
    handles = set(result.handles)
    for build in builds(rule):
        _add_build(result, build, known, handles)
    return result


def perturbed_steps(rule: t.Rule, known: SymbolTable) -> list[SideStep]:
    """The ops that `perturb { y := op(y) }` runs."""
    result = Sides(rule)
    for move in (m for p in rule.all(t.Perturb) for m in p.moves if isinstance(m, t.Assign)):
        value = move.value
        if str(move.path) not in result.exchanged or not isinstance(value, t.Call):
            continue
        if isinstance(value.function, t.Name) and known.is_op(value.function.text):
            _call_step(result, value, known, set())
    return result.right


def pattern_steps(patterns: tuple[t.Pattern, ...]) -> list[SideStep]:
    """The op patterns of one block alone."""
    return [_pattern_step(p) for p in patterns if isinstance(p, t.OpPattern)]


def _add_patterns(result: Sides, patterns: tuple[t.Pattern, ...]) -> None:
    result.left += pattern_steps(patterns)
    result.shapes += [p for p in patterns if isinstance(p, t.ShapePattern)]


def _pattern_step(pattern: t.OpPattern) -> SideStep:
    return SideStep(
        ops=tuple(word.text for word in pattern.ops.names),
        operands=[_operand(operand) for operand in pattern.operands],
        settings={k.name.text: k.value for k in pattern.attrs},
        results=tuple(word.text for word in pattern.targets),
        span=pattern.ops.span,
        whole=pattern.span,
        handle=pattern.handle.text if pattern.handle else "",
        shared=pattern.shared,
        repeat=pattern.repeat,
        words=pattern.targets,
        keywords={k.name.text: k.span for k in pattern.attrs},
    )


def _operand(operand: t.Expr | t.Rest) -> Operand:
    if isinstance(operand, t.Name):
        return None if operand.text == "_" else operand.text
    return operand


def _add_build(result: Sides, build: t.Build, known: SymbolTable, handles: set[str]) -> None:
    if isinstance(build.value, t.Name):
        for word in build.targets:
            result.aliases[word.text] = build.value.text
        return
    if not isinstance(build.value, t.Call) or not isinstance(build.value.function, t.Name):
        result.odd.append(build)
        return
    step = _call_step(result, build.value, known, handles)
    step.results = tuple(word.text for word in build.targets)
    step.words, step.whole = build.targets, build.span
    if build.handle is not None:
        step.handle = build.handle.text
        handles.add(step.handle)
    step.like = build.origin.text if build.origin else ""


def _call_step(result: Sides, call: t.Call, known: SymbolTable, handles: set[str]) -> SideStep:
    assert isinstance(call.function, t.Name)
    name = call.function.text
    clone = name if name in handles else ""
    ops = result.handles[name].ops if clone and name in result.handles else (name,)
    facts = known.op(ops[0])
    step = SideStep(ops, [], {k.name.text: k.value for k in call.keywords}, (), call.function.span,
                call.span, clone=clone)  # fmt: skip
    step.keywords = {k.name.text: k.span for k in call.keywords}
    count = input_count(facts, call.args)
    for arg in call.args[:count]:
        step.operands.append(_built_operand(result, arg, known, handles))
    attrs = tuple(facts.attrs) if facts else ()
    step.extra = next(iter(call.args[count + len(attrs) :]), None)
    for attr, arg in zip(attrs, call.args[count:], strict=False):
        step.settings.setdefault(attr, arg)
    result.right.append(step)
    return step


def input_count(facts: OpFacts | None, args: tuple[t.Expr, ...]) -> int:
    """How many of the positional arguments of a build are inputs; the others are attributes."""
    if facts is None:
        return len(args)
    if facts.most is not None:
        return min(facts.most, len(args))
    literal = [isinstance(a, (t.Number, t.Constant, t.String, t.Unary, t.Frac)) for a in args]
    return literal.index(True) if True in literal else len(args)


def _built_operand(result: Sides, arg: t.Expr, known: SymbolTable, handles: set[str]) -> Operand:
    if isinstance(arg, t.Name):
        return arg.text
    if is_op_call(arg, known, handles):
        assert isinstance(arg, t.Call)
        step = _call_step(result, arg, known, handles)
        step.results = (f"%{len(result.right)}",)
        return step.results[0]
    return arg


def is_op_call(arg: t.Expr, known: SymbolTable, handles: set[str]) -> bool:
    """Whether an argument is a nested op, such as the pool in `flatten(avg_pool2d(y), 1)`."""
    if not isinstance(arg, t.Call) or not isinstance(arg.function, t.Name):
        return False
    name = arg.function.text
    return name in handles or known.is_op(name) or known.extern(name) is None
