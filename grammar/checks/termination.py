"""L001, L002, L003: rules that could go on forever."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ..algebra.symbolic import Poly
from ..algebra.unify import Shape
from ..diagnostics import Label
from ..reached import reached
from ..tree import tree as t
from .costs import extended, side_cost
from .declared import SymbolTable
from .embed import Embedding, embed
from .instances import OpInstance, ordered
from .overlap import GroupedRule
from .report import Messages
from .sampling import Sampler, guards_of, number
from .shapes import ShapeModel
from .sides import Sides, SideStep
from .term import Term
from .terms import Terms
from .truth import Sample, Truth

MAX_GROUP = 60


def check_growth(
    rule: t.Rule,
    both: Sides,
    model: ShapeModel,
    sampler: Sampler,
    known: SymbolTable,
    report: Messages,
) -> None:
    """L001 and L003: does the right side hold an instance of the left side, and does it shrink?"""
    measure = rule.one(t.Recursive)
    for step in both.right:
        found = embed(both, step, both.right, known, loose=True)
        if found is None or not _inside(both, found):
            continue
        again = [s for s in sampler.instances()[:12] if _fires(rule, model, found, s)]
        if measure is None and again:
            _endless(rule, both, found, report)
            return
        if measure is not None and not _shrinks(rule, model, found, measure, again, report):
            return


def _inside(both: Sides, found: Embedding) -> bool:
    """All of the pattern was met, inside the right side alone."""
    return len(found.steps) == len(both.left)


def _endless(rule: t.Rule, both: Sides, found: Embedding, report: Messages) -> None:
    pattern, target = found.steps[0]
    places = Label(target.whole, "matches again"), Label(pattern.whole, "this pattern")
    message = f"the right side of `{rule.name}` contains its left side"
    help = "add a guard that fails for the new op, or `recursive decreasing EXPR`"
    report.error("L001", message, *places, help=help)


def _fires(rule: t.Rule, model: ShapeModel, found: Embedding, sample: Sample) -> bool:
    """Whether the new ops satisfy the pattern and every guard for these sizes.

    A guard over numbers that the rule computes is open: the weights decide it, and no error may be
    built on that.
    """
    names = _bindings(rule, model, found, sample)
    if names is None:
        return False
    truth, computed = Truth(names), _computed(rule, found)
    for guard in guards_of(rule):
        held = truth.holds(guard, sample)
        if held is False or (held is None and computed & _numbers(guard)):
            return False
    return True


def _computed(rule: t.Rule, found: Embedding) -> set[str]:
    """What holds other numbers after an application: `g` of a `let`, `c.weight` of a new op."""
    lets = {w.text for c in rule.all(t.Let) for b in c.bindings for w in b.targets}
    named = [(old.handle, new) for old, new in found.steps if old.handle]
    return lets | {f"{handle}.{name}" for handle, new in named for name in new.settings}


def _numbers(guard: t.Node) -> set[str]:
    """The names and weights whose numbers a guard reads. Owner, shape and type are no numbers."""
    if isinstance(guard, t.Call) and guard.function.span.text in _NO_NUMBERS:
        return set()
    own = {guard.span.text} if isinstance(guard, (t.Name, t.Attribute)) else set()
    parts = (part for part in t.children(guard) if not isinstance(part, t.Word))
    return own.union(*(_numbers(part) for part in parts))


_NO_NUMBERS = frozenset(("owned", "sharers", "calls", "size", "numel", "shape", "dtype", "rank"))


def _bindings(rule: t.Rule, model: ShapeModel, found: Embedding, sample: Sample) -> Terms | None:
    """The names of the pattern bound to the new ops, None if a constraint of the pattern fails."""
    terms = Terms(model.solver, model.known)
    terms.names |= {p.name.text: model.terms.names.get(p.name.text, Term()) for p in rule.params}
    made = {id(i.step): i for i in model.right}
    for pattern, target in found.steps:
        inst = made.get(id(target))
        if inst is None or not _bind_step(model, terms, pattern, inst, sample):
            return None
    values = model.after | {n: s for n, s in model.before.items() if n not in model.after}
    for shape in model.sides.shapes:
        met = _met(shape, found, terms, values)
        if met is None or not _bind_shape(model, terms, shape.type, met, sample):
            return None
    return terms


def _bind_step(
    model: ShapeModel, terms: Terms, pattern: SideStep, inst: OpInstance, sample: Sample
) -> bool:
    """Bind the attributes of one op; False if the pattern asks for others."""
    attrs = inst.local.names
    for attr, expr in pattern.settings.items():
        given = attrs.get(attr, Term())
        if isinstance(expr, t.Name) and expr.text not in terms.names:
            terms.names[expr.text] = given
        elif not _agree(model, terms.of(expr), given, sample):
            return False
    parts = {name: attrs.get(name, Term()) for name in inst.facts.attrs} | inst.weights
    if pattern.handle:
        terms.parts |= {(pattern.handle, name): term for name, term in parts.items()}
    return True


def _met(
    shape: t.ShapePattern, found: Embedding, terms: Terms, values: dict[str, Shape]
) -> Shape | None:
    parts = [word.text for word in shape.path.parts]
    if len(parts) == 2:
        return terms.parts.get((parts[0], parts[1]), Term()).shape
    met = found.values.get(parts[0])
    return values.get(met) if isinstance(met, str) else None


def _bind_shape(
    model: ShapeModel, terms: Terms, type_: t.Type, shape: Shape, sample: Sample
) -> bool:
    axes, dims = model.solver.shape(shape), type_.dims or ()
    if any(isinstance(d, t.DimRest) for d in dims):
        return True
    if len(axes) != len(dims) or not all(isinstance(axis, Poly) for axis in axes):
        return False
    for dim, axis in zip(dims, axes, strict=True):
        given = Term((), axis if isinstance(axis, Poly) else None)
        if isinstance(dim, t.Name) and dim.text not in terms.names:
            terms.names[dim.text] = given
        elif isinstance(dim, t.Expr) and not _agree(model, terms.of(dim), given, sample):
            return False
    return True


def _agree(model: ShapeModel, left: Term, right: Term, sample: Sample) -> bool:
    """Whether two attributes have the same value for these sizes; unknown ones do not."""
    if left.items is None and right.items is not None:
        left = Term(items=(left,) * len(right.items))
    if left.items is not None and right.items is not None:
        pairs = zip(left.items, right.items, strict=False)
        return all(_agree(model, a, b, sample) for a, b in pairs)
    if left.number is None or right.number is None:
        return left.word == right.word != ""
    gap = model.solver.resolve(left.number - right.number)
    return gap.symbols <= set(sample) and number(gap, sample) == 0


def _shrinks(
    rule: t.Rule,
    model: ShapeModel,
    found: Embedding,
    measure: t.Recursive,
    samples: list[Sample],
    report: Messages,
) -> bool:
    for sample in samples:
        names = _bindings(rule, model, found, sample)
        old = Truth(model.terms).of(measure.measure, sample)
        new = Truth(names).of(measure.measure, sample) if names else None
        numbers = isinstance(old, (int, float, Fraction)) and isinstance(
            new, (int, float, Fraction)
        )
        if numbers and new >= old:  # type: ignore[operator]
            note = f"for one instance it is {old:g} before and {new:g} after"
            places = (
                Label(measure.measure.span, "declared to decrease"),
                Label(found.steps[0][1].whole, "matches again"),
            )
            message = f"the measure of `{rule.name}` does not decrease"
            report.error("L003", message, *places, note=note)
            return False
    return True


# -- L002 ------------------------------------------------------------------------------------------


def check_cycles(
    stage: t.Stage,
    group: Sequence[GroupedRule],
    built: dict[int, tuple[ShapeModel, Sampler]],
    report: Messages,
) -> None:
    """Rules of a fixpoint that can enable each other need one order in which all of them fall."""
    rules = [e for e in group[:MAX_GROUP] if e.rule.one(t.Recursive) is None and e.both.right]
    after = {id(e): {op for s in e.both.right for op in s.ops} for e in rules}
    needs = {id(e): {op for s in e.both.left for op in s.ops} for e in rules}
    enables = {id(a): [b for b in rules if after[id(a)] & needs[id(b)]] for a in rules}
    reach = {id(e): {id(o) for o in reached([e], lambda o: enables[id(o)])} for e in rules}
    seen: set[int] = set()
    for entry in rules:
        ring = [o for o in rules if id(o) in reach[id(entry)] and id(entry) in reach[id(o)]]
        if len(ring) > 1 and id(entry) not in seen:
            seen |= {id(o) for o in ring}
            _ring(stage, ring, built, report)


def _ring(
    stage: t.Stage,
    ring: list[GroupedRule],
    built: dict[int, tuple[ShapeModel, Sampler]],
    report: Messages,
) -> None:
    """Lexicographic order: drop the rules that some measure lowers while no other raises it."""
    rest = list(ring)
    while rest:
        measures = _measures(rest)
        lowered = next((low for m in measures if (low := _lowered(rest, m, built))), None)
        if not lowered:
            break
        rest = [e for e in rest if all(e is not other for other in lowered)]
    if len(rest) > 1:
        names = " and ".join(f"`{e.rule.name}`" for e in rest[:3])
        labels = [Label(e.word.span, "enables the other") for e in rest[:3]]
        message = f"{names} of stage `{stage.name}` can undo each other forever"
        note = "no count of ops, weights or multiplications falls with every application"
        help = "add `recursive decreasing EXPR` to one, or use `once` instead of `fixpoint`"
        report.error("L002", message, *labels, note=note, help=help)


def _measures(ring: list[GroupedRule]) -> list[str]:
    names = {op for e in ring for s in (*e.both.left, *e.both.right) for op in s.ops}
    counts = [f"count of {name}" for name in sorted(names)]
    return ["ops", *counts, "params", "macs", *(f"place of {name}" for name in sorted(names))]


def _lowered(
    ring: list[GroupedRule], measure: str, built: dict[int, tuple[ShapeModel, Sampler]]
) -> list[GroupedRule]:
    """The rules that lower a measure, if none of the others raises it."""
    low = []
    for entry in ring:
        sign = _sign(entry, measure, built)
        if sign is None or sign > 0:
            return []
        if sign < 0:
            low.append(entry)
    return low


def _sign(
    entry: GroupedRule, measure: str, built: dict[int, tuple[ShapeModel, Sampler]]
) -> int | None:
    """-1 if the rule always lowers the measure, 0 if it never raises it, None or 1 otherwise."""
    both = entry.both
    if measure == "ops":
        return _compare([Fraction(len(both.right) - len(both.left))])
    if measure.startswith("count of "):
        name = measure.removeprefix("count of ")
        most = sum(name in s.ops for s in both.right)
        least = sum(s.ops == (name,) for s in both.left)
        return _compare([Fraction(most - least)])
    if measure.startswith("place of "):
        return _moved(both, measure.removeprefix("place of "))
    if id(entry.rule) not in built:
        return None
    model, sampler = built[id(entry.rule)]
    before, after = side_cost(model, model.left, measure), side_cost(model, model.right, measure)
    if before is None or after is None or len(model.left) + len(model.right) == 0:
        return None
    gap = model.solver.resolve(after - before)
    samples = [extended(model, s) for s in sampler.instances()]
    usable = [s for s in samples if gap.symbols <= set(s)]
    return _compare([number(gap, s) for s in usable]) if usable else None


def _moved(both: Sides, name: str) -> int | None:
    """-1 if a rule that keeps its ops moves `name` towards the output: each op has an end to reach.

    The ops behind `name` are counted. Those outside the site stay behind it, so the count over the
    whole model changes by as much as the count in the site; that needs the same ops on both sides.
    """
    if sorted(s.ops for s in both.left) != sorted(s.ops for s in both.right):
        return None
    before, after = (_behind(steps, name) for steps in (both.left, both.right))
    return (after > before) - (after < before)


def _behind(steps: Sequence[SideStep], name: str) -> int:
    """How many pairs of an op `name` and another op that depends on it there are."""
    starts = [step for step in steps if name in step.ops]
    return sum(_below(start, ordered(list(steps))) for start in starts)


def _below(start: SideStep, steps: list[SideStep]) -> int:
    """The number of ops that depend on `start`; `steps` has producers before readers."""
    values, count = set(start.results), 0
    for step in steps:
        if values & set(step.reads):
            values |= set(step.results)
            count += 1
    return count


def _compare(gaps: Sequence[object]) -> int:
    if all(gap < 0 for gap in gaps):  # type: ignore[operator]
        return -1
    return 0 if all(gap <= 0 for gap in gaps) else 1  # type: ignore[operator]
