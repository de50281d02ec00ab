"""S001, S002, S003 and P004: do both sides have the same shapes, for every instance?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from ..algebra.substitution import substitute
from ..algebra.symbolic import Poly, TooLarge, const
from ..algebra.unify import AnyAxes, Mismatch, Shape, plain_name, shape_text
from ..diagnostics import Diagnostic, Label, Span
from ..tree import tree as t
from ..tree.clauses import builds
from .instances import OpInstance
from .report import Messages
from .sampling import Sampler, number
from .shapes import ShapeModel
from .sides import SideStep
from .truth import Sample


def check_sizes(models: list[ShapeModel], samplers: list[Sampler], report: Messages) -> bool:
    """Whether nothing is wrong. With alternatives, the first choice that fails is shown."""
    if _alternatives_disagree(models, report):
        return False
    for model, sampler in zip(models, samplers, strict=True):
        before = report.errors
        note = _choice(model) if len(models) > 1 else ""
        _faults(model, report, note)
        if report.errors == before:
            _demands(model, sampler, report, note)
        if report.errors == before:
            _outputs(model, sampler, report, note)
        if report.errors > before:
            return False
    return True


def _choice(model: ShapeModel) -> str:
    taken = [
        f"`{s.results[0]}` is a {model.ops[id(s)]}" for s in model.sides.left if len(s.ops) > 1
    ]
    return f"this is so when {' and '.join(taken)}"


def _faults(model: ShapeModel, report: Messages, note: str) -> None:
    for fault in model.faults:
        report.error(fault.code, fault.message, *fault.labels, note=note)


def _demands(model: ShapeModel, sampler: Sampler, report: Messages, note: str) -> None:
    """What the builds and functions need of the sizes must hold in every instance."""
    for demand in model.solver.pending:
        poly = model.solver.resolve(demand.poly)
        found = _counterexample(model, sampler, poly)
        fault = model.topics.get(demand.topic)  # type: ignore[call-overload]
        if found is None:
            continue
        text = f"{_shown(found, poly)} makes two sizes differ by {abs(number(poly, found)):g}"
        notes = f"smallest counterexample: {text}"
        if fault is not None:
            labels, message, code = fault.labels, fault.message, fault.code
        else:
            message, label = model.terms.labels[demand.topic]
            labels, code = (label,), "S002"
        noted, help = "; ".join(filter(None, (notes, note))), _setting(model, poly)
        report.error(code, message, *labels, note=noted, help=help)
        return


def _setting(model: ShapeModel, poly: Poly) -> str:
    """The value of one open setting for which two sizes are equal: `groups = 1`."""
    for op, name, symbol in _open_settings(model):
        for value in (1, 0):
            if substitute(poly, {symbol: const(value)}).is_zero:
                return f"it fits for {name} = {value}: match `{op}(..., {name} = {value})`"
    return ""


def _open_settings(model: ShapeModel) -> Iterator[tuple[str, str, str]]:
    """(op, attribute, symbol) of each matched setting that is one unknown number."""
    for inst in model.left:
        for name in inst.facts.attrs.keys() - inst.step.settings.keys():
            number = inst.local.names[name].number
            symbols = frozenset() if number is None else model.solver.resolve(number).symbols
            yield from ((inst.facts.name, name, symbol) for symbol in symbols if len(symbols) == 1)


def _counterexample(model: ShapeModel, sampler: Sampler, poly: Poly) -> dict[str, float] | None:
    """The smallest instance found in which `poly` is not zero."""
    if poly.is_zero or any(name not in model.solver.given for name in poly.symbols):
        return None

    def wrong(sample: Sample) -> bool:
        try:
            return number(poly, sample) != 0
        except (ZeroDivisionError, KeyError):
            return False

    model.sampled = True
    for sample in sampler.instances():
        if wrong(sample):
            return sampler.smallest(sample, wrong, sampler.symbols)
    return None


def _shown(sample: Sample, *polys: Poly) -> str:
    """`H = 3, s = 2`: the symbols that matter, pairs without their index if one element occurs."""
    names = sorted(frozenset().union(*(poly.symbols for poly in polys)), key=_name_order)
    bases = [name.split(".")[0] for name in names]
    parts = []
    for name, base in zip(names, bases, strict=True):
        parts.append(f"{base if bases.count(base) == 1 else name} = {sample.get(name, 1):g}")
    return plain_name(", ".join(parts))


def _name_order(name: str) -> tuple[bool, str]:
    return name[0].islower(), name


# -- S001 ------------------------------------------------------------------------------------------


def _outputs(model: ShapeModel, sampler: Sampler, report: Messages, note: str) -> None:
    for name in model.sides.outputs:
        if name in model.after:
            _output(model, sampler, report, name, note)


def _output(model: ShapeModel, sampler: Sampler, report: Messages, name: str, note: str) -> None:
    solver = model.solver
    old, new = solver.shape(model.before[name]), solver.shape(model.after[name])
    start = len(solver.pending)
    try:
        solver.unify(old, new, ("output", name))
    except Mismatch:
        example = f"it has {len(old)} axes before and {len(new)} after"
        _differs(model, report, name, (shape_text(old), shape_text(new)), example, note)
        return
    except TooLarge:
        return
    solver.settle()
    for demand in solver.pending[start:]:
        poly = solver.resolve(demand.poly)
        found = _counterexample(model, sampler, poly)
        if found is not None:
            axis = _apart(old, new, demand.axis, found)
            numbers = _axis_text(old, new, axis, found)
            example = f"smallest counterexample: {_shown(found, poly)} gives {numbers}"
            shapes = _until(old, axis), _until(new, axis)
            _differs(model, report, name, shapes, example, note)
            return


def _until(shape: Shape, axis: int) -> str:
    """The shape, a long one up to the axis that matters; `p` for `p.0` where `p.1` does not
    occur.
    """
    text = shape_text(shape)
    if len(text) > LONG and 0 <= axis < len(shape) - 1:
        text = shape_text(shape[: axis + 1])[:-1] + ", ...]"
    return plain_name(text if ".1" in text else text.replace(".0", ""))


LONG = 40
"""Characters of a shape that are shown in any case."""


def _apart(old: Shape, new: Shape, axis: int, sample: Sample) -> int:
    """The first axis whose sizes differ; where the number of axes is open, the one at fault."""
    if len(old) == len(new) and not any(isinstance(size, AnyAxes) for size in (*old, *new)):
        pairs = zip(old, new, strict=True)
        differ = (
            n for n, pair in enumerate(pairs) if _size(pair[0], sample) != _size(pair[1], sample)
        )
        return next(differ, axis)
    return axis


def _size(size: object, sample: Sample) -> float | None:
    known = isinstance(size, Poly) and size.symbols <= set(sample)
    return number(size, sample) if known and isinstance(size, Poly) else None


def _axis_text(old: Shape, new: Shape, axis: int, sample: Sample) -> str:
    before, after = (_size(shape[axis], sample) for shape in (old, new))
    sizes = ["?" if size is None else f"{size:g}" for size in (before, after)]
    place = f" on axis {axis}" if len(old) > 1 else ""
    return f"{sizes[0]} before and {sizes[1]} after{place}"


def _differs(
    model: ShapeModel,
    report: Messages,
    name: str,
    shapes: tuple[str, str],
    example: str,
    note: str,
) -> None:
    step, built = model.sides.produced[name], model.sides.built.get(name)
    place = built.whole if built is not None else _alias_span(model.rule, name)
    labels = [
        Label(place, f"built here: {shapes[1]}"),
        Label(step.whole, f"matched here: {shapes[0]}"),
    ]
    twice, help = _stride_twice(model, name), ""
    if twice is not None:
        labels[0] = Label(twice[0], "stride applied a second time")
        help = f"`{twice[1]}` already has stride {twice[2]}; use stride = 1"
    notes = "; ".join(filter(None, (example, note)))
    message = f"`{name}` has another shape after the rewrite"
    report.error("S001", message, *labels, note=notes, help=help)


def _alias_span(rule: t.Rule, name: str) -> Span:
    found = (b.span for b in builds(rule) if any(w.text == name for w in b.targets))
    return next(found, rule.name.span)


def _stride_twice(model: ShapeModel, name: str) -> tuple[Span, str, str] | None:
    """The usual mistake: the stride of the matched op is given to two ops in a row."""
    given = [i.step for i in model.right if "stride" in i.step.settings]
    for first, step in combinations(given, 2):
        text = step.settings["stride"].span.text
        same = first.settings["stride"].span.text == text != "1"
        if same and set(first.results) & set(step.reads):
            return step.keywords.get("stride", step.whole), first.results[0], text
    return None


# -- S003 ------------------------------------------------------------------------------------------


def _alternatives_disagree(models: list[ShapeModel], report: Messages) -> bool:
    """Whether an axis that another op names holds the channels of one alternative only."""
    steps = models[0].sides.left if models else []
    found = (_split_axes(models, step) for step in steps if len(step.ops) > 1)
    first = next((diagnostic for diagnostic in found if diagnostic is not None), None)
    if first is not None:
        report.found[first] = None
    return first is not None


def _split_axes(models: list[ShapeModel], step: SideStep) -> Diagnostic | None:
    by_op = {model.ops[id(step)]: model for model in reversed(models)}
    readers = models[0].sides.left
    for reader, name in ((r, n) for r in readers for n in r.reads if n in step.results):
        verdicts = {op: _own_axis(m, step, reader, name) for op, m in by_op.items()}
        known = {op: v for op, v in verdicts.items() if v is not None}
        if len(set(known.values())) > 1:
            return _axes_diagnostic(models, step, reader, known)
    return None


def _own_axis(model: ShapeModel, step: SideStep, reader: SideStep, name: str) -> bool | None:
    """Whether the axis that the reader ties to its weights was made by the step's weights."""
    made = next((i for i in model.left if i.step is step), None)
    read = next((i for i in model.left if i.step is reader), None)
    if made is None or read is None or not made.weights:
        return None
    weights = _symbols(model, read)
    own = _symbols(model, made)
    shape = model.solver.shape(model.before[name])
    tied = [a for a in shape if isinstance(a, Poly) and a.symbols & weights]
    if not tied or not weights:
        return None
    return any(axis.symbols & own for axis in tied)


def _symbols(model: ShapeModel, inst: OpInstance) -> frozenset[str]:
    """The symbols in the shapes of an op's weights, for a weight that has one axis or the first."""
    shapes = (model.solver.shape(term.shape or ())[:1] for term in inst.weights.values())
    axes = (axis for shape in shapes for axis in shape if isinstance(axis, Poly))
    return frozenset(name for axis in axes for name in axis.symbols)


def _axes_diagnostic(
    models: list[ShapeModel], step: SideStep, reader: SideStep, verdicts: dict[str, bool]
) -> Diagnostic:
    assert models
    good = [op for op, own in verdicts.items() if own]
    bad = [op for op, own in verdicts.items() if not own]
    model = next(m for m in models if m.ops[id(step)] == bad[0])
    consumer = model.ops[id(reader)]
    alone, example = _last_axis(model, step)
    message = f"`{good[0]}` and `{bad[0]}` put their channels on different axes"
    labels = (
        Label(step.span, alone.format(op=bad[0])),
        Label(reader.span, f"`{consumer}` reads {_reads_axis(model, reader)}"),
    )
    note = f"smallest counterexample: {example}"
    shown = step.results[0]
    help = f"write one rule for each op, the one for `{bad[0]}` with `{shown} : f[N, F]`"
    return Diagnostic("S003", message, labels, (note,), (help,))


def _last_axis(model: ShapeModel, step: SideStep) -> tuple[str, str]:
    inst = next(i for i in model.left if i.step is step)
    shape = inst.results[0]
    last = bool(shape) and isinstance(shape[0], AnyAxes) and isinstance(shape[-1], Poly)
    text = "`{op}` puts them last" if last else "`{op}` puts them elsewhere"
    return text, "[N, L, F] fits only if L == F"


def _reads_axis(model: ShapeModel, reader: SideStep) -> str:
    inst = next(i for i in model.left if i.step is reader)
    weights = _symbols(model, inst)
    for axis, size in enumerate(model.solver.shape(inst.inputs[0])):
        if isinstance(size, Poly) and size.symbols & weights:
            return f"axis {axis}"
    return "another axis"
