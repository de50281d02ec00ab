"""What the names of a rule stand for, as far as its tree tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ....grammar.tree import tree as t
from ....grammar.tree.fold import literal
from ...ops.opspec import OpSpec
from ...ops.vocabulary import Vocabulary


@dataclass(frozen=True)
class Roles:
    """handles: the ops behind `c`. values, dims, lets, built: names in textual order. settings:
    names bound to attributes, by type. ops: every op name on either side, `_` left out.
    fixed: weights that are always there, since the pattern says their shape. axes: of values whose
    shape the pattern says, and of what an op makes of them element by element. pointwise: handles
    of ops whose kernels are one wide. bounded: some op cuts off below 0. halved: names of numbers
    in a half type. in_half: values are in one, too. casts: values that hold the same numbers in two
    types.
    """

    vocabulary: Vocabulary
    handles: dict[str, tuple[OpSpec, ...]]
    values: tuple[str, ...]
    settings: dict[str, str]
    dims: tuple[str, ...]
    lets: tuple[str, ...]
    built: tuple[str, ...]
    ops: frozenset[str]
    fixed: frozenset[str]
    axes: dict[str, int]
    pointwise: frozenset[str]
    bounded: bool
    halved: frozenset[str]
    in_half: bool
    casts: frozenset[frozenset[str]]

    def is_halved(self, value: t.Expr) -> bool:
        """Whether numbers were put into a half type."""
        return isinstance(value, t.Name) and value.text in self.halved

    def kin(self, name: str) -> tuple[str, ...]:
        """Up to two other names of the same kind: those that stand beside it in the rule."""
        settings = [n for n, kind in self.settings.items() if kind == self.settings.get(name)]
        small = [n for n in self.lets if not n[0].isupper()]
        large = [n for n in self.lets if n[0].isupper()]
        groups = ((*self.values, *self.built), settings, self.dims, small, large)
        return next((_beside(group, name) for group in groups if name in group), ())

    def called(self, call: t.Call) -> tuple[OpSpec, ...]:
        """The ops that a call may build; none where it calls a numeric function."""
        if not isinstance(call.function, t.Name):
            return ()
        name = call.function.text
        if name in self.handles:
            return self.handles[name]
        found = self.vocabulary.get(name)
        return (found,) if found is not None and self._takes_values(call) else ()

    def _takes_values(self, call: t.Call) -> bool:
        """`max` is both an op and a function: an op works on values of the graph."""
        graph = {*self.values, *self.built}
        return any(
            arg.text in graph if isinstance(arg, t.Name) else bool(self.called(arg))
            for arg in call.args
            if isinstance(arg, (t.Name, t.Call))
        )

    def is_clone(self, call: t.Call) -> bool:
        return isinstance(call.function, t.Name) and call.function.text in self.handles

    def is_graph(self, expr: t.Expr) -> bool:
        """Whether an expression names a value of the graph, or an op."""
        known = {*self.values, *self.built, *self.handles}
        return isinstance(expr, t.Name) and expr.text in known

    @property
    def signless(self) -> bool:
        """Whether some op is never negative, as codes are: then its magnitude is no news."""
        if self.bounded:
            return True
        specs = (self.vocabulary.get(name) for name in self.ops)
        return any(spec is not None and _never_negative(spec) for spec in specs)


def _never_negative(spec: OpSpec) -> bool:
    results = (kind.name or "" for kind in spec.decl.results)
    return "nonnegative" in spec.traits or any(name.startswith("uint") for name in results)


def _beside(group: Sequence[str], name: str) -> tuple[str, ...]:
    at = group.index(name)
    near = (group[at - 1], group[(at + 1) % len(group)])
    return tuple(dict.fromkeys(other for other in near if other != name))


def roles(rule: t.Rule, vocabulary: Vocabulary) -> Roles:
    patterns = [p for match in rule.all(t.Match) for p in match.patterns]
    ops = [p for p in patterns if isinstance(p, t.OpPattern)]
    shapes = [p for p in patterns if isinstance(p, t.ShapePattern)]
    lets = [b for let in rule.all(t.Let) for b in let.bindings]
    steps = [s for r in rule.all(t.Rewrite) for s in r.steps if isinstance(s, t.Build)]
    values = _words(_values(p) for p in ops)
    return Roles(
        vocabulary,
        {p.handle.text: _specs(p, vocabulary) for p in ops if p.handle is not None},
        values,
        dict(pair for p in ops for pair in _settings(p, vocabulary)),
        _words(_dims(p.type) for p in shapes),
        _words((w.text for w in b.targets) for b in lets),
        tuple(n for n in _words((w.text for w in s.targets) for s in steps) if n not in values),
        frozenset(word.text for p in ops for word in p.ops.names) | _made(steps),
        frozenset(str(p.path) for p in shapes),
        _axes(shapes, steps, vocabulary),
        frozenset(str(p.path).partition(".")[0] for p in shapes if _one_wide(p)),
        any(_least(p) for p in ops),
        frozenset(w.text for b in lets if _calls(b.value, "as_type") for w in b.targets),
        any(
            isinstance(n, t.String) and n.value in HALVES
            for w in rule.all(t.Where)
            for n in t.walk(w)
        ),
        frozenset(frozenset(_values(p)) for p in ops if _is_typed(p, vocabulary)),
    )


HALVES = ("bfloat16", "float16")
"""Types of numbers of 16 bits, as guards name them."""


def _least(pattern: t.OpPattern) -> bool:
    """`hardtanh(x, min_val = 0.0)` is never negative."""
    least = [literal(k.value) for k in pattern.attrs if k.name.text == "min_val"]
    return all(isinstance(n, (int, float)) and n >= 0 for n in least) and bool(least)


def _calls(expr: t.Expr, name: str) -> bool:
    function = expr.function if isinstance(expr, t.Call) else None
    return isinstance(function, t.Name) and function.text == name


def _is_typed(pattern: t.OpPattern, vocabulary: Vocabulary) -> bool:
    """Whether the op does nothing but change the type of numbers."""
    return all(
        "idempotent" in spec.traits and [a.type for a in spec.attrs.values()] == ["dtype"]
        for spec in _specs(pattern, vocabulary)
    )


def _axes(
    shapes: Sequence[t.ShapePattern], steps: Sequence[t.Build], vocabulary: Vocabulary
) -> dict[str, int]:
    known = {str(p.path): len(p.type.dims) for p in shapes if p.type.dims and not _open(p)}
    for step in steps:
        call = step.value if isinstance(step.value, t.Call) else None
        first = call.args[0] if call is not None and call.args else None
        spec = (
            vocabulary.get(call.function.text)
            if call and isinstance(call.function, t.Name)
            else None
        )
        if isinstance(first, t.Name) and spec is not None and "elementwise" in spec.traits:
            known |= {step.targets[0].text: known[first.text]} if first.text in known else {}
    return known


def _open(pattern: t.ShapePattern) -> bool:
    return any(isinstance(dim, t.DimRest) for dim in pattern.type.dims or ())


def _one_wide(pattern: t.ShapePattern) -> bool:
    """`c.weight : [N, C, 1, 1]`."""
    kernel = (pattern.type.dims or ())[2:]
    return str(pattern.path).endswith(".weight") and bool(kernel) and all(map(_is_one, kernel))


def _is_one(dim: t.Dim) -> bool:
    return isinstance(dim, t.Expr) and literal(dim) == 1


def _made(steps: Iterable[t.Build]) -> frozenset[str]:
    called = (step.value.function for step in steps if isinstance(step.value, t.Call))
    return frozenset(function.text for function in called if isinstance(function, t.Name))


def _words(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for group in groups for word in group if word != "_"))


def _values(pattern: t.OpPattern) -> list[str]:
    operands = [o.text for o in pattern.operands if isinstance(o, t.Name)]
    return [*operands, *(word.text for word in pattern.targets)]


def _specs(pattern: t.OpPattern, vocabulary: Vocabulary) -> tuple[OpSpec, ...]:
    found = (vocabulary.get(word.text) for word in pattern.ops.names)
    return tuple(spec for spec in found if spec is not None)


def _settings(pattern: t.OpPattern, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    specs = _specs(pattern, vocabulary)
    named = [k for k in pattern.attrs if isinstance(k.value, t.Name) and specs]
    attrs = [(k.value, specs[0].attrs.get(k.name.text)) for k in named]
    return [(value.text, attr.type) for value, attr in attrs if attr and isinstance(value, t.Name)]


def _dims(kind: t.Type) -> list[str]:
    names = [d.text for d in kind.dims or () if isinstance(d, t.Name)]
    return [name for name in names if name[0].isupper()]
