"""C001 and C002: cost claims against the guards, with costs as polynomials in the sizes."""

from __future__ import annotations

from ..algebra.symbolic import Poly, TooLarge, common, const, divide, linear_in, product, symbol
from ..diagnostics import Label
from ..tree import tree as t
from ..tree.clauses import claims
from .declared import BUFFERS
from .instances import OpInstance
from .report import Messages
from .sampling import Sampler, number
from .shapes import ShapeModel
from .term import Term
from .terms import Terms
from .truth import Sample

MEASURES = ("macs", "params", "ops")


def side_cost(model: ShapeModel, side: list[OpInstance], measure: str) -> Poly | None:
    """The cost of one side, None if an op does not declare it."""
    if measure == "ops":
        return const(len(side))
    parts = [_weights(model, i) if measure == "params" else _macs(model, i) for i in side]
    if any(part is None for part in parts):
        return None
    return model.solver.resolve(sum((p for p in parts if p is not None), const(0)))


def _macs(model: ShapeModel, inst: OpInstance) -> Poly | None:
    cost = inst.facts.costs.get("macs")
    if cost is None:
        return const(0)
    names = dict(inst.local.names)
    for name in inst.facts.dims:
        names[name] = _opaque(model, name, names[name])
    if inst.results:
        names["result"] = Term(inst.results[0])
    return Terms(model.solver, model.known, names=names).number(cost)


def _opaque(model: ShapeModel, name: str, term: Term) -> Term:
    """An output extent as one symbol: a cost that both sides multiply with it can be cancelled."""
    poly = None if term.number is None else model.solver.resolve(term.number)
    if poly is None or len(poly.terms) < 2:
        return term
    key = next((k for k, known in model.extents.items() if known == poly), None)
    if key is None:
        key = next(iter(model.solver.fresh(name).symbols))
        model.extents[key] = poly
    return Term((), symbol(key))


def extended(model: ShapeModel, sample: Sample) -> Sample:
    """The sample with the values of the output extents."""
    return {**sample, **{key: _number(poly, sample) for key, poly in model.extents.items()}}


def _weights(model: ShapeModel, inst: OpInstance) -> Poly | None:
    """The number of elements of the parameters; one that may be absent counts with its presence."""
    sums = const(0)
    for term in (term for name, term in inst.weights.items() if name not in BUFFERS):
        if term.presence is not None and term.presence.is_zero:
            continue
        shape = None if term.shape is None else model.solver.shape(term.shape)
        if shape is None or not all(isinstance(axis, Poly) for axis in shape):
            return None
        size = product(axis for axis in shape if isinstance(axis, Poly))
        sums = sums + size * (const(1) if term.presence is None else term.presence)
    return sums


def check_costs(rule: t.Rule, model: ShapeModel, sampler: Sampler, report: Messages) -> None:
    """Test each claim such as `macs(after) < macs(before)` on instances that pass the guards."""
    if not model.right and not model.sides.aliases:
        return
    if len(model.right) < len(model.sides.right) or len(model.left) < len(model.sides.left):
        return
    _kept(rule, model, sampler, report)
    for claim in claims(rule):
        if isinstance(claim.condition, t.Binary):
            _claim(rule, model, sampler, report, claim.condition)


def _kept(rule: t.Rule, model: ShapeModel, sampler: Sampler, report: Messages) -> None:
    """C003: where others read a `shared` value, the op that makes it runs beside the new ones."""
    kept = [inst for inst in model.left if inst.step.shared]
    named = {n.function.span.text for c in claims(rule) for n in t.walk(c) if isinstance(n, t.Call)}
    before, after = (
        side_cost(model, model.left, "macs"),
        side_cost(model, model.right + kept, "macs"),
    )
    if not kept or named & {"macs", "latency"} or before is None or after is None:
        return
    gap = model.solver.resolve(after - before)
    samples = (extended(model, s) for s in sampler.instances())
    usable = [s for s in samples if gap.symbols <= set(s)]
    if usable and all(_number(gap, s) > 0 for s in usable):
        numbers = f"{_number(before, usable[0]):g} before, {_number(after, usable[0]):g} after"
        label = Label(kept[0].step.whole, f"stays where others read `{kept[0].step.results[0]}`")
        message = f"`shared` lets `{rule.name}` multiply more than before"
        help = "leave out `shared`, or claim `macs(after) <= macs(before)` in `ensure`"
        note = f"multiply-accumulates, for example: {numbers}"
        report.warn("C003", message, label, note=note, help=help)


def _claim(
    rule: t.Rule, model: ShapeModel, sampler: Sampler, report: Messages, claim: t.Binary
) -> None:
    try:
        left, right = _side(model, claim.left), _side(model, claim.right)
    except TooLarge:
        return
    if left is None or right is None or claim.op not in _TESTS:
        return
    gap = model.solver.resolve(left - right)
    samples = [extended(model, s) for s in sampler.instances()]
    usable = [s for s in samples if gap.symbols <= set(s)]
    if not usable:
        return
    failing = [s for s in usable if not _TESTS[claim.op](_number(gap, s))]
    if not failing:
        return
    if gap.constant is not None or len(failing) == len(usable):
        _never(rule, claim, left, right, usable, report)
    else:
        _not_implied(model, sampler, report, claim, gap, failing[0])


def _number(poly: Poly, sample: Sample) -> float:
    try:
        return number(poly, sample)
    except ZeroDivisionError:
        return 0.0


_TESTS = {
    "<": lambda gap: gap < 0, "<=": lambda gap: gap <= 0, ">": lambda gap: gap > 0,
    ">=": lambda gap: gap >= 0, "==": lambda gap: gap == 0, "!=": lambda gap: gap != 0,
}  # fmt: skip


def _side(model: ShapeModel, expr: t.Expr) -> Poly | None:
    """`0.9 * macs(before)` as a polynomial; None for anything that is not a cost of this site."""
    if isinstance(expr, t.Call) and isinstance(expr.function, t.Name):
        return _measured(model, expr)
    if isinstance(expr, t.Binary) and expr.op in ("+", "-", "*"):
        left, right = _side(model, expr.left), _side(model, expr.right)
        if left is None or right is None:
            return None
        return {"+": left.__add__, "-": left.__sub__, "*": left.__mul__}[expr.op](right)
    return model.terms.number(expr) if isinstance(expr, (t.Number, t.Frac)) else None


def _measured(model: ShapeModel, call: t.Call) -> Poly | None:
    assert isinstance(call.function, t.Name)
    scope = call.args[0].text if call.args and isinstance(call.args[0], t.Name) else ""
    side = {"before": model.left, "after": model.right}.get(scope)
    if side is None or call.function.text not in MEASURES:
        return None
    kept = [i for i in model.left if i.step.shared] if scope == "after" else []
    return side_cost(model, side + kept, call.function.text)


def _never(
    rule: t.Rule,
    claim: t.Binary,
    left: Poly,
    right: Poly,
    samples: list[Sample],
    report: Messages,
) -> None:
    numbers = f"{_number(left, samples[0]):g} {claim.op} {_number(right, samples[0]):g}"
    method = "proved" if (left - right).constant is not None else f"sampled {len(samples)} times"
    label = Label(claim.span, f"for example {numbers}")
    message = f"the claim of `{rule.name}` can never hold"
    report.error("C002", message, label, note=f"{claim.span.text}: {method}")


def _not_implied(
    model: ShapeModel,
    sampler: Sampler,
    report: Messages,
    claim: t.Binary,
    gap: Poly,
    sample: Sample,
) -> None:
    def wrong(trial: Sample) -> bool:
        return not _TESTS[claim.op](_number(gap, extended(model, trial)))

    small = extended(model, sampler.smallest(sample, wrong, sampler.symbols))
    shown = ", ".join(f"{name} = {small[name]:g}" for name in sorted(gap.symbols))
    label = Label(claim.span, "does not follow from the guards")
    limit = break_even(model, gap)
    help = f"break-even is at {limit}; add it to `where`" if limit else "add it to `where`"
    note = f"it fails for {shown}"
    report.warn("C001", "a cost claim can fail", label, note=note, help=help)


def break_even(model: ShapeModel, gap: Poly) -> str:
    """`M < K*L*O/(K*L + O)` from after - before, for a parameter of the rule or a size of `let`."""
    shared = common(gap, lambda name: model.solver.lows.get(name, 1) >= 1)
    simple = divide(gap, shared) or gap
    chosen = [p.name.text for p in model.rule.params]
    chosen += [w.text for let in model.rule.all(t.Let) for b in let.bindings for w in b.targets]
    for name in chosen:
        parts = linear_in(simple, name)
        if parts is None:
            continue
        factor, rest = parts
        top = str(-rest)
        top = top if len(rest.terms) == 1 else f"({top})"
        return f"{name} < {top}/({factor})"
    return ""
