"""The weights that a build gives to an op against those that the op declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..algebra.unify import Shape, Solver, plain_name, shape_text
from ..diagnostics import Label, Span
from ..tree import tree as t
from .instances import OpInstance, ShapeFault
from .terms import declared_shape, dimension_names


class Equations(Protocol):
    """What is asked of the equations of a rule."""

    solver: Solver

    def unify(self, left: Shape, right: Shape, fault: ShapeFault) -> None: ...


def check_weights(model: Equations, inst: OpInstance) -> None:
    """Demand the declared shapes. What one weight says of a size holds for the next."""
    earlier: list[tuple[t.OpParam, Label]] = []
    for name, param in inst.facts.params.items():
        shape, place = inst.weights[name].shape, _place(inst, name)
        if not shape:
            continue
        declared = declared_shape(inst.local, param.type, {}, model.solver)
        known = plain_name(shape_text(model.solver.shape(shape)))
        wanted = plain_name(shape_text(model.solver.shape(declared)))
        message = f"`{name}` has not the shape that `{inst.facts.name}` declares"
        source = Label(param.type.span, f"declared here: {wanted}")
        labels = Label(place, f"given here: {known}"), *_said(param, earlier), source
        model.unify(shape, declared, ShapeFault("S002", message, labels))
        text = f"`{name}` is {known} here, declared {param.type.span.text}"
        earlier.append((param, Label(place, text)))


def _place(inst: OpInstance, name: str) -> Span:
    given = inst.step.settings.get(name)
    return given.span if given is not None else inst.step.whole


def _said(param: t.OpParam, earlier: list[tuple[t.OpParam, Label]]) -> Iterator[Label]:
    """The weights that fix a size of this one."""
    own = _names(param)
    yield from (label for other, label in earlier if own & _names(other))


def _names(param: t.OpParam) -> set[str]:
    return {name.text for dim in param.type.dims or () for name in dimension_names(dim)}
