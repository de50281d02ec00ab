"""`einsum`: the equation names the dimension of every axis."""

from __future__ import annotations

from torch import fx

from ..ops.call import OpCall
from .flow import Flow
from .labels import Vectors, along, joined, together
from .sizes import shape_at
from .units import KeepReason


def summed(flow: Flow, call: OpCall) -> None:
    """Axes with one letter are one; letters that the result lacks are summed over."""
    values = call.inputs[0]
    terms, result = _letters(call.attrs["equation"])
    fits = all(len(t) == len(shape_at(v)) for t, v in zip(terms, values, strict=False))
    if len(terms) != len(values) or not fits or any(len(set(t)) < len(t) for t in terms):
        flow.block_inputs(call.node, "its equation has `...` or a letter twice in one term")
        return
    known: dict[str, list[Vectors]] = {}
    for term, value in zip(terms, values, strict=True):
        tracks, shape = flow.separate(value), shape_at(value)
        for axis, letter in enumerate(term):
            if shape[axis] > 1:
                known.setdefault(letter, []).append(along(tracks, axis))
        if isinstance(value, fx.Node) and value.op == "get_attr":
            for axis, letter in enumerate(term):
                role = "writes" if letter in result else "reads"
                flow.roles.setdefault((str(value.target), axis), role)
    why = KeepReason(call.node.name, "einsum reads it like what has no features")
    one = {letter: together(flow.atoms, found, why) for letter, found in known.items()}
    if any(vectors for letter, vectors in one.items() if letter not in result):
        flow.contracted[call.node] = None
    flow.set(call.node, joined([one.get(letter, ()) for letter in result]))


def summed_axes(call: OpCall) -> dict[fx.Node, set[int]]:
    """The axes of each operand whose letter the result lacks."""
    terms, result = _letters(call.attrs["equation"])
    found: dict[fx.Node, set[int]] = {}
    for term, value in zip(terms, call.inputs[0], strict=True):
        axes = {axis for axis, letter in enumerate(term) if letter not in result}
        found.setdefault(value, set()).update(axes)
    return found


def _letters(equation: str) -> tuple[list[str], str]:
    """The terms and the result; without `->`, letters that occur once, in order of the alphabet."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    everything = left.replace(",", "")
    once = "".join(sorted(c for c in set(everything) if everything.count(c) == 1))
    return left.split(","), right if arrow else once
