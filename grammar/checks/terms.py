"""What is known of an expression without a model: the shape of an array, the value of a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ..algebra.symbolic import (
    Poly,
    TooLarge,
    const,
    greatest,
    least,
    product,
)
from ..algebra.unify import AnyAxes, Axis, Mismatch, Shape, Solver, plain_name, shape_text
from ..diagnostics import Label
from ..tree import tree as t
from ..tree.fold import Fold
from .arguments import pair
from .declared import SymbolTable
from .term import ARITHMETIC, DATA, UNKNOWN, Stop, Term, exact, paired, sliced

_EINSUM = re.compile(r"[a-zA-Z]+(,[a-zA-Z]+)*->[a-zA-Z]*")


@dataclass(slots=True)
class Terms(Fold[Term]):
    """The terms of one rule: `parts` those of `c.weight` and `c.stride`, `names` of all else."""

    solver: Solver
    known: SymbolTable
    names: dict[str, Term] = field(default_factory=dict)
    parts: dict[tuple[str, str], Term] = field(default_factory=dict)
    labels: dict[object, tuple[str, Label]] = field(default_factory=dict)
    broken: list[tuple[str, Label, str]] = field(default_factory=list)
    is_rule: bool = False

    def of(self, expr: t.Expr, hint: str = "") -> Term:  # type: ignore[override]
        """`hint` names the symbol for an integer that only the weights decide."""
        try:
            found = Fold.of(self, expr)
        except TooLarge:
            return UNKNOWN
        if hint and found is DATA:
            return Term(number=self.solver.fresh(hint))
        return UNKNOWN if found is DATA else found

    def number(self, expr: t.Expr) -> Poly | None:
        return self.of(expr).number

    # -- leaves

    def name(self, expr: t.Name) -> Term:
        return self.names.get(expr.text, UNKNOWN)

    def literal(self, expr: t.Number | t.Frac | t.Constant | t.String) -> Term:
        if isinstance(expr, t.String):
            return Term(word=expr.value)
        if expr.value is None:
            return Term(presence=const(0), word="none")
        return Term((), const(exact(expr)))

    def other(self, expr: t.Expr) -> Term:
        return UNKNOWN

    def items(self, expr: t.Tuple | t.List) -> Term:
        return Term(items=tuple(self.of(item) for item in expr.items))

    def attribute(self, expr: t.Attribute) -> Term:
        if isinstance(expr.value, t.Name) and (expr.value.text, expr.name) in self.parts:
            return self.parts[expr.value.text, expr.name]
        base = self.of(expr.value)
        if not expr.name.isdigit():
            return UNKNOWN
        place = int(expr.name)
        if base.items is not None:
            return base.items[place] if place < len(base.items) else UNKNOWN
        return self._axis(base, place)

    def _axis(self, term: Term, place: int) -> Term:
        """`key.1` in an op: the extent of axis 1 of an input."""
        axes = self.solver.shape(term.shape or ())[: place + 1]
        if len(axes) <= place or not all(isinstance(axis, Poly) for axis in axes):
            return UNKNOWN
        found = axes[place]
        return Term((), found) if isinstance(found, Poly) else UNKNOWN

    def unary(self, expr: t.Unary) -> Term:
        inner = self.of(expr.operand)
        if expr.op == "not":
            return UNKNOWN
        return Term(inner.shape, None if inner.number is None else -inner.number)

    def binary(self, expr: t.Binary) -> Term:
        left, right = self.of(expr.left), self.of(expr.right)
        if expr.op == "or":
            return self._either(left, right)
        if expr.op not in ARITHMETIC:
            return UNKNOWN
        if left.items is not None or right.items is not None:
            return paired(expr.op, left, right)
        if left.number is not None and right.number is not None:
            return Term((), ARITHMETIC[expr.op](left.number, right.number))
        if left.shape is None or right.shape is None:
            return UNKNOWN
        if expr.op == "@":
            return self._matmul(expr, left.shape, right.shape)
        topic = ("array", id(expr))
        self.labels[topic] = ("the sizes of the operands differ", Label(expr.span, "computed here"))
        shape = self.solver.broadcast((left.shape, right.shape), topic)
        return Term(shape, presence=const(1))

    def _either(self, left: Term, right: Term) -> Term:
        """`c.bias or 0` has the shape of the bias; a choice between numbers is left to the data."""
        if left.shape is not None and left.number is None:
            return Term(left.shape, presence=const(1))
        return UNKNOWN if left.number is None and right.shape != () else DATA

    def _matmul(self, expr: t.Binary, left: Shape, right: Shape) -> Term:
        topic = ("matmul", expr.span.start)
        self.labels[topic] = ("the inner sizes of `@` differ", Label(expr.span, "multiplied here"))
        left, right = self.solver.shape(left), self.solver.shape(right)
        if len(left) != 2 or len(right) not in (1, 2):
            return UNKNOWN
        a, b = left[-1], right[0]
        if isinstance(a, Poly) and isinstance(b, Poly):
            self.solver.equate(a, b, topic, 1)
        return Term((left[0], *right[1:]), presence=const(1))

    def subscript(self, expr: t.Subscript) -> Term:
        base, index = self.of(expr.value), [self._index(item) for item in expr.items]
        if base.shape is None:
            return UNKNOWN
        shape = self.solver.shape(base.shape)
        if len(index) == 1 and isinstance(index[0], tuple):
            return Term((*index[0], *shape[1:]), presence=const(1))
        axes: list[Axis] = []
        for position, item in enumerate(index):
            if position >= len(shape) or isinstance(shape[position], AnyAxes) or item is UNKNOWN:
                return UNKNOWN
            axes += sliced(shape[position], item)
        return Term((*axes, *shape[len(index) :]), presence=const(1))

    def _index(self, item: t.Expr | t.Slice) -> object:
        """None for one element, the size of a slice, or the shape of an index array."""
        if isinstance(item, t.Slice):
            if item.start is not None:
                return UNKNOWN
            stop = None if item.stop is None else self.number(item.stop)
            return UNKNOWN if item.stop is not None and stop is None else Stop(stop)
        found = self.of(item)
        return UNKNOWN if found.shape is None else found.shape or None

    # -- calls

    def call(self, expr: t.Call) -> Term:
        name = expr.function.text if isinstance(expr.function, t.Name) else ""
        args = [self.of(arg) for arg in expr.args]
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, expr, args)
        extern = self.known.extern(name)
        if extern is None:
            return UNKNOWN
        return self._signature(expr, extern)

    def _signature(self, expr: t.Call, extern: t.Extern) -> Term:
        """Match the arguments against the declared shapes and give the declared results."""
        local = Terms(self.solver, self.known)
        rests: dict[str, Shape] = {}
        given = pair(extern.params, expr.args, expr.keywords)[0]
        for param, arg in given:
            local.names[param.name.text] = self.of(arg)
        for param in extern.params:
            if param.default is not None:
                local.names.setdefault(param.name.text, local.of(param.default))
        for param, arg in given:
            if param.type.dims is not None:
                self._argument(local, param, arg, rests, extern.name.text)
        terms = tuple(_result(local, result, rests) for result in extern.results)
        return terms[0] if len(terms) == 1 else Term(items=terms)

    def _argument(
        self, local: Terms, param: t.Param, arg: t.Expr, rests: dict[str, Shape], owner: str
    ) -> None:
        shape = local.names[param.name.text].shape
        if shape is None:
            return
        declared = declared_shape(local, param.type, rests, self.solver)
        if shape == () and any(isinstance(axis, AnyAxes) for axis in declared):
            rests.setdefault("...", ())
            return
        topic = ("argument", arg.span.start, param.name.text)
        message = f"`{param.name}` of `{owner}` has the wrong shape"
        found = plain_name(shape_text(self.solver.shape(shape)))
        text = f"this is {found}, declared {param.type.span.text}"
        self.labels[topic] = (message, Label(arg.span, text))
        if shape == ():
            return
        try:
            self.solver.unify(shape, declared, topic)
        except Mismatch:
            has = f"it has {len(self.solver.shape(shape))} axes"
            self.broken.append((message, self.labels[topic][1], has))


def declared_shape(local: Terms, type_: t.Type, rests: dict[str, Shape], solver: Solver) -> Shape:
    """The shape of a declared type; its dimension names live in `local`, `...` in `rests`."""
    axes: list[Axis] = []
    for dim in type_.dims or ():
        if isinstance(dim, t.DimRest):
            axes += rests.setdefault("...", (solver.rest(("declared", len(solver.made))),))
        elif isinstance(dim, t.Expr):
            axes.append(dimension(local, dim, solver))
        else:
            axes.append(solver.fresh("N"))
    return tuple(axes)


def dimension(local: Terms, dim: t.Expr, solver: Solver) -> Poly:
    """The size that a dimension expression denotes; unbound names become new symbols."""
    for name in dimension_names(dim):
        if name.text not in local.names:
            size = solver.fresh(name.text)
            local.names[name.text] = Term((), size)
            solver.named |= size.symbols if local.is_rule else set()
    found = local.number(dim)
    return solver.fresh("N") if found is None else found


def dimension_names(dim: t.Node) -> list[t.Name]:
    """The dimensions in an expression. The usual forms are read directly: `walk` is much slower."""
    if isinstance(dim, t.Name):
        return [dim] if dim.is_dimension else []
    if isinstance(dim, t.Binary):
        return dimension_names(dim.left) + dimension_names(dim.right)
    if isinstance(dim, t.Number):
        return []
    return [n for n in t.walk(dim) if isinstance(n, t.Name) and n.is_dimension]


def _result(local: Terms, type_: t.Type, rests: dict[str, Shape]) -> Term:
    if type_.dims is not None:
        shape = declared_shape(local, type_, rests, local.solver)
        return Term(shape, presence=const(1))
    return DATA if type_.name == "int" else UNKNOWN


# -- functions whose result the type language cannot say -------------------------------------------


def _size(terms: Terms, expr: t.Call, args: list[Term]) -> Term:
    """size(w, axis): the extent of one axis."""
    named = {k.name.text: terms.of(k.value) for k in expr.keywords}
    axis = (args[1] if len(args) > 1 else named.get("axis", Term(number=const(0)))).number
    shape = args[0].shape if args else None
    place = axis.constant if axis is not None else None
    if shape is None or not isinstance(place, int):
        return UNKNOWN
    axes = terms.solver.shape(shape)
    before = axes[:place] if place >= 0 else axes[place:]
    if not -len(axes) <= place < len(axes) or any(isinstance(a, AnyAxes) for a in before):
        return UNKNOWN
    found = axes[place]
    return Term((), found) if isinstance(found, Poly) else UNKNOWN


def _numel(terms: Terms, expr: t.Call, args: list[Term]) -> Term:
    shape = terms.solver.shape(args[0].shape) if args and args[0].shape is not None else None
    if shape is None or any(isinstance(axis, AnyAxes) for axis in shape):
        return UNKNOWN
    return Term((), product(axis for axis in shape if isinstance(axis, Poly)))


def _extreme(choose: Callable[..., Poly]) -> Callable[[Terms, t.Call, list[Term]], Term]:
    def result(terms: Terms, expr: t.Call, args: list[Term]) -> Term:
        numbers = [arg.number for arg in args if arg.number is not None]
        return Term((), choose(*numbers)) if len(numbers) == len(args) > 0 else UNKNOWN

    return result


def _filled(terms: Terms, expr: t.Call, args: list[Term]) -> Term:
    """zeros(O, I), ones(O), kaiming(O, I): the arguments are the shape."""
    sizes = [arg.number if arg.number is not None else terms.solver.fresh("N") for arg in args]
    return Term(tuple(sizes), presence=const(1))


def _einsum(terms: Terms, expr: t.Call, args: list[Term]) -> Term:
    equation = expr.args[0] if expr.args else None
    text = equation.value.replace(" ", "") if isinstance(equation, t.String) else ""
    if not _EINSUM.fullmatch(text):
        return UNKNOWN
    inputs, output = text.split("->")
    sizes: dict[str, Poly] = {}
    topic = ("einsum", expr.span.start)
    label = Label(expr.span, "in this equation")
    terms.labels[topic] = ("one letter of the equation stands for two sizes", label)
    for letters, arg in zip(inputs.split(","), args[1:], strict=False):
        if arg.shape is None:
            return UNKNOWN
        axes = tuple(sizes.setdefault(x, terms.solver.fresh(x.upper())) for x in letters)
        try:
            terms.solver.unify(arg.shape, axes, topic)
        except Mismatch:
            has = f"`{letters}` names {len(letters)} axes"
            terms.broken.append(("an operand of `einsum` has another number of axes", label, has))
            return UNKNOWN
    if not set(output) <= set(sizes):
        return UNKNOWN
    return Term(tuple(sizes[x] for x in output), presence=const(1))


_SPECIAL: dict[str, Callable[[Terms, t.Call, list[Term]], Term]] = {
    "size": _size, "runtime_size": _size, "numel": _numel,
    "min": _extreme(least), "max": _extreme(greatest),
    "zeros": _filled, "ones": _filled, "kaiming": _filled, "einsum": _einsum,
}  # fmt: skip
