"""Values inside of a graph, beside what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import Label, LissomError, Span, fail
from ..graph.exits import exits_of
from ..graph.memory import after, mutations
from ..graph.places import nodes_at
from ..graph.snapshot import finish, snapshot
from ..ops.spec import TensorSpec
from .settings import Called

INSIDE = ("hint", "attention")
"""Terms that look at values inside."""


@dataclass(frozen=True, slots=True)
class InnerPlace:
    """Where a term looks inside: `at` of the student, `of` of its teacher."""

    term: Called
    at: str
    of: str

    @property
    def name(self) -> str:
        return name_of_place(self.term.name, self.at, self.of)


def name_of_place(term: str, at: str, of: str) -> str:
    """What the value is known by; a module may be called so."""
    return f"{term} {at} {of or at}".replace(".", "/")


def inner_places(loss: Sequence[Called]) -> Iterator[InnerPlace]:
    """The places of all terms that look inside. Raises F004 for one that names none."""
    for call in (call for call in loss if call.name in INSIDE):
        given = dict(zip(("at", "of"), call.args, strict=False)) | dict(call.keywords)
        at, of = given.get("at"), given.get("of")
        if not isinstance(at, str) or not isinstance(of, str | None):
            hint = f'{call.name}(at = "layer2", of = "layer3")'
            raise fail("F004", f"`{call.name}` names a place", Label(call.span), help=hint)
        yield InnerPlace(call, at, of or at)


def name_of_exit(at: int) -> str:
    """What an exit is known by; they count from 1."""
    return f"exit {at + 1}"


def name_of_score(at: int) -> str:
    """What the score of an exit is known by."""
    return f"score {at + 1}"


def is_exit(name: str) -> bool:
    return name.startswith("exit ")


def is_score(name: str) -> bool:
    return name.startswith("score ")


def tapped(
    graph: fx.GraphModule, places: Sequence[tuple[str, Span]], whose: str = "the model"
) -> fx.GraphModule:
    """The same graph, sharing all weights; it returns `(outputs, values)`, a value for each place:
    the last one that the ops there give, as they give it; behind these the logits of each exit,
    then their scores. Raises U008 for a place that the model does not have; spans: what asks for
    it.
    """
    copied = snapshot(graph)
    output = next(node for node in reversed(copied.graph.nodes) if node.op == "output")
    values = tuple(_value(copied, place, span, whose) for place, span in places)
    exits = exits_of(copied.graph)
    values += (*(one.logits for one in exits), *(one.score for one in exits))
    output.args = ((output.args[0], values),)
    finish(copied)
    return copied


def _value(graph: fx.GraphModule, place: str, span: Span, whose: str) -> fx.Node:
    try:
        found = nodes_at(graph.graph.nodes, place)
    except LissomError as error:
        (said,) = error.diagnostics
        message = f"{whose} has nothing at `{place}`"
        raise LissomError(replace(said, message=message, labels=(Label(span),))) from None
    ordered = [node for node in graph.graph.nodes if node in found and _is_numbers(node)]
    if not ordered:
        raise fail("U008", f"nothing at `{place}` of {whose} gives numbers", Label(span))
    return _unwritten(graph, ordered[-1])


def _unwritten(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The value as it is before anything behind writes to memory (an activation in place, say)."""
    if not after(mutations(graph), node):
        return node
    with graph.graph.inserting_after(node):
        return graph.graph.call_function(torch.clone, (node,))


def _is_numbers(node: fx.Node) -> bool:
    spec = node.meta.get("val")
    known = isinstance(spec, (TensorSpec, Tensor))
    return node.op != "get_attr" and known and spec.dtype.is_floating_point  # type: ignore[union-attr]
