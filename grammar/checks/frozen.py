"""S004: sizes of activations that a rewrite holds as numbers: those of the example, for good."""

from __future__ import annotations

from collections.abc import Iterator

from ..algebra.symbolic import Poly
from ..diagnostics import Label
from ..tree import tree as t
from .declared import COMPUTED
from .report import Messages
from .shapes import ShapeModel
from .sides import SideStep
from .term import Term

RUNTIME = "runtime_size"
SHAPES = ("shape", "sizes", "size")
"""Settings that -1 leaves open on one axis."""


def check_frozen(model: ShapeModel, report: Messages) -> None:
    """Warns of settings and operands of the rewrite that name a size only activations have."""
    open_sizes = _of_activations(model)
    for step in model.sides.right:
        facts = model.known.op(model.sides.op_of(step, model.ops))
        weights = () if facts is None else facts.params
        for name, expr in _numbers(step):
            if name in weights:  # another size would not fit it, and the model would say so
                continue
            found = [(e, s) for e in _leaves(expr) for s in _symbols(model, e) if s in open_sizes]
            if found:
                _warn(report, expr, found[0], open_sizes, _remedy(model, step, name))


def _remedy(model: ShapeModel, step: SideStep, name: str) -> str:
    facts = model.known.op(model.sides.op_of(step, model.ops))
    if name and facts is not None and facts.traits.isdisjoint(COMPUTED):
        return "use an op that needs no size: `adaptive_avg_pool2d(x, output_size = 1)`, `mean`"
    return "write `{size}`" + (", or -1 for one axis" if name in SHAPES else "")


def _warn(
    report: Messages,
    expr: t.Expr,
    found: tuple[t.Expr, str],
    open_sizes: dict[str, tuple[str, int]],
    remedy: str,
) -> None:
    leaf, symbol = found
    value, axis = open_sizes[symbol]
    named = leaf.text if isinstance(leaf, t.Name) else leaf.span.text
    message = f"`{named}` is a number here: the size of `{value}` on the example"
    note = "the rewritten model keeps it at every other batch, length and image size"
    help_ = remedy.format(size=f"{RUNTIME}({value}, {axis})")
    report.warn("S004", message, Label(expr.span, "held as a number"), note=note, help=help_)


def _numbers(step: SideStep) -> Iterator[tuple[str, t.Expr]]:
    """What a build gives as a setting or as a number to compute with."""
    yield from step.settings.items()
    for operand in step.operands:
        if isinstance(operand, t.Expr):
            yield "", operand
        elif isinstance(operand, str) and operand[0].isupper():  # a size, for values are lower case
            yield "", t.Name(operand, span=step.whole)


def _leaves(expr: t.Node) -> Iterator[t.Expr]:
    """The names and sizes in an expression, those left out that are taken at run time."""
    if isinstance(expr, t.Call) and isinstance(expr.function, t.Name):
        if expr.function.text == RUNTIME:
            return
        if expr.function.text == "size":
            yield expr
            return
    if isinstance(expr, t.Name):
        yield expr
    for child in t.children(expr):
        yield from _leaves(child)


def _symbols(model: ShapeModel, expr: t.Expr) -> frozenset[str]:
    return _in_term(model, model.terms.of(expr))


def _in_term(model: ShapeModel, term: Term) -> frozenset[str]:
    own = frozenset() if term.number is None else model.solver.resolve(term.number).symbols
    return own.union(*(_in_term(model, item) for item in term.items or ()))


def _of_activations(model: ShapeModel) -> dict[str, tuple[str, int]]:
    """Sizes that nothing fixes but the data: each with a value that has it, and the axis."""
    fixed = _of_weights(model) | _of_settings(model) | _pinned(model)
    found: dict[str, tuple[str, int]] = {}
    kept = [name for name in model.before if name not in model.sides.produced]
    for value in [*kept, *model.sides.outputs]:
        for axis, size in enumerate(model.solver.shape(model.before.get(value, ()))):
            symbols = size.symbols if isinstance(size, Poly) else frozenset()
            for symbol in symbols - fixed if len(symbols) == 1 else ():
                found.setdefault(symbol, (value, axis))
    return found


def _of_weights(model: ShapeModel) -> frozenset[str]:
    """A layer's weights have these sizes at every input."""
    shapes = [w.shape for inst in model.left for w in inst.weights.values() if w.shape]
    axes = [axis for shape in shapes for axis in model.solver.shape(shape)]
    return frozenset(s for axis in axes if isinstance(axis, Poly) for s in axis.symbols)


def _of_settings(model: ShapeModel) -> frozenset[str]:
    """What a matched op is set to is a number of the model."""
    given = [expr for step in model.sides.left for expr in step.settings.values()]
    return frozenset().union(*(_symbols(model, expr) for expr in given))


def _pinned(model: ShapeModel) -> frozenset[str]:
    """Sizes that a guard equates with what is fixed: `H == 1`."""
    guards = [
        g.condition
        for where in model.rule.all(t.Where)
        for g in where.guards
        if isinstance(g, t.Guard)
    ]
    return frozenset().union(*(_equated(model, guard) for guard in guards))


def _equated(model: ShapeModel, condition: t.Expr) -> frozenset[str]:
    if not isinstance(condition, t.Binary):
        return frozenset()
    if condition.op == "and":
        return _equated(model, condition.left) | _equated(model, condition.right)
    sides = [_symbols(model, side) for side in (condition.left, condition.right)]
    one_is_fixed = condition.op == "==" and not all(sides)
    return sides[0] | sides[1] if one_is_fixed else frozenset()
