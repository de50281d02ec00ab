"""What a model's code asks of a tensor besides its numbers and sizes: their type, how they lie in
memory, on which device, whether they have a history of gradients.

A graph holds one answer. Where it follows from the inputs, each call must give it again; what
follows from how the capture ran (no gradients, no autocast), and where memory lies, is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ...grammar.diagnostics import Diagnostic
from ...grammar.reached import reached
from ..ops.spec import TensorSpec
from .conditions import labels_of
from .questions import KINDS, OFFSET, ORDER, TOLD, TYPE, is_own
from .watch import is_given, text_of

Told = Mapping[tuple[fx.Node, str], str]
"""What was asked, of which node, and on which source line."""


@dataclass(frozen=True)
class Known:
    """What a model's code knew of its inputs, by their names: of which the number of axes
    (`ranked`), the answers of which kind and from which line (`forms`), whether the numbers.
    """

    ranked: frozenset[str] = frozenset()
    forms: Mapping[tuple[str, str], str] = field(default_factory=dict)
    numbers: bool = False


def forms_of(told: Told) -> dict[tuple[str, str], str]:
    """The inputs that answers follow from: (kind, input) and the first source line."""
    found: dict[tuple[str, str], str] = {}
    for (node, name), source in told.items():
        kind = KINDS[name]
        for given in _behind(node, kind) if kind != TOLD else ():
            found.setdefault((kind, text_of(given)), source)
            if kind == OFFSET:
                found.setdefault((ORDER, text_of(given)), source)
    return found


def _behind(node: fx.Node, kind: str) -> list[fx.Node]:
    """The inputs that an answer about a value can follow from."""

    def sources(at: fx.Node) -> Iterable[fx.Node]:
        passed = (source for source in at.all_input_nodes if _passes_on(source, at, kind))
        return () if is_given(at) else passed

    return [at for at in reached([node], sources) if is_given(at)]


def _passes_on(source: fx.Node, node: fx.Node, kind: str) -> bool:
    """Whether a value has its type, or its place, from a value that it is computed from."""
    ours, theirs = node.meta["val"], source.meta["val"]
    if isinstance(theirs, TensorSpec) and isinstance(ours, TensorSpec):
        return kind != TYPE or ours.dtype == theirs.dtype
    return not isinstance(theirs, (int, float, bool, str, type(None)))


def mode_notes(told: Told, modes: Mapping[str, str]) -> Iterator[Diagnostic]:
    """M013 for questions whose answers no call can be held to."""
    asked: dict[str, Any] = {name: where for (_, name), where in told.items() if is_own(name)}
    asked |= modes
    if asked:
        names = ", ".join(f"`{name}`" for name in asked)
        places = dict.fromkeys(asked.values())
        yield Diagnostic(
            "M013",
            f"the model's code asks for {names}; the graph holds the answer of the capture",
            tuple(label for where in places for label in labels_of("", where)),
            ("a capture runs without gradients, autocast and inference mode, on copies of inputs",),
            ("see that the model computes the same with any other answer",),
            "warning",
        )
