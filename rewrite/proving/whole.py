"""Rules that range over something of the whole model: what becomes of one place, and whether the
model behind it computes what it should.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, fx

from ...grammar.diagnostics import LissomError
from ..apply.faulty_sites import model_faults
from ..apply.queries import QUESTIONS
from ..graph.runs import watched
from ..journal import Journal
from ..measure.compare import distance, model_equality
from ..measure.samples import Example, Samples
from ..ops.spec import spec_of
from ..rules.binding import NoMatch
from ..rules.state import State
from ..targets.target import Prepared, Target
from .dims.models import Graph
from .models.variants import longer
from .mutants.mutate import RAISED
from .trial import (
    CRASH,
    REFUSED,
    SILENT,
    UNSOUND,
    VACUOUS,
    WRONG,
    Functions,
    Outcome,
    Subject,
    blamed,
    condition,
    elsewhere,
    run_or_error,
    sizes_of,
)

P = TypeVar("P")
R = TypeVar("R", bound=Prepared)

MOVES = 1e-9
"""A change that moves the outputs by less, relative L2, shows nothing."""

NOTHING_FITS = ("K002", "R010", "R011")
"""What a model alone may be the reason of; any other error is one that a guard should prevent."""


def graph_state(subject: Subject, graph: Graph, more: Functions | None = None) -> State:
    """A state to apply rules in; `more` are functions that only variants of the rule call."""
    samples = Samples(graph.args, others=tuple(_other_sizes(graph)))
    functions = {**subject.functions, **(more or {})}
    return State(graph.module, subject.vocabulary, functions, QUESTIONS, samples, Journal())


def _other_sizes(graph: Graph) -> Iterator[Example]:
    """What the model takes besides its inputs; a compiler learns that when it captures one."""
    for inputs in longer(graph.args):
        if not isinstance(run_or_error(graph.module, inputs), Exception):
            yield Example(sizes_of(inputs), inputs)


def tried_at(target: Target[P, R], place: P, applied: Callable[[R], Outcome]) -> Outcome:
    """What becomes of one place. `applied` commits what was prepared, and judges it."""
    try:
        found = target.prepare(place)
        if not isinstance(found, NoMatch):
            return applied(found)
        if found.faults:
            return blamed(found.faults)
        if found.raised and found.code not in NOTHING_FITS:
            return Outcome(UNSOUND, found.code, found.text())
    except LissomError as error:
        return Outcome(UNSOUND, error.diagnostics[0].code, str(error))
    except Exception as error:  # whatever else escapes is a mistake of the engine: a finding
        return Outcome(CRASH, type(error).__name__, traceback.format_exc())
    return Outcome(REFUSED if found.code else SILENT, condition(found), found.text())


def said_at(target: Target[P, Any], place: P) -> str:
    """The guard that says no, or a code, or nothing where the rule applies."""
    try:
        found = target.prepare(place)
    except LissomError as error:
        return error.diagnostics[0].code
    except RAISED as error:  # what comes behind a guard may need it
        return type(error).__name__
    return condition(found) if isinstance(found, NoMatch) else ""


# -- a changed model -------------------------------------------------------------------------------


def agreement(
    reference: fx.GraphModule, module: fx.GraphModule, inputs: tuple[Any, ...], seed: int, name: str
) -> Counter[str] | Outcome:
    """On which other inputs, by kind, a changed model was compared with what it must equal: they
    agree on these and on `inputs`. Otherwise what is wrong, or why nothing is shown.
    """
    verdict = model_equality(reference, module, inputs, len(module.graph.nodes))
    faults = () if verdict.holds else model_faults(reference, module, inputs)
    if faults:
        return blamed(faults)
    if not verdict.holds:
        numbers = f"{verdict.worst} > {verdict.tolerance}; {verdict.detail}"
        return Outcome(WRONG, verdict.claim, f"at {name}: {numbers}")
    if verdict.how == "not checked":
        return Outcome(VACUOUS, "outputs are rounding alone", verdict.detail)
    return elsewhere(reference, module, inputs, seed)


def farthest(before: list[Any], after: list[Any]) -> float:
    """The largest relative L2 distance of outputs; infinite where shapes differ."""
    pairs = zip(before, after, strict=True)
    return max((distance(a, b) for a, b in pairs if isinstance(a, Tensor)), default=0.0)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def misdescribed(module: fx.GraphModule, inputs: tuple[Any, ...]) -> list[str]:
    """Nodes whose recorded shapes are not the real ones."""
    wrong: list[str] = []

    def compare(node: fx.Node, value: Any) -> None:
        said, real = node.meta.get("val"), spec_of(value)
        if node.op != "output" and not _same(said, real):
            wrong.append(f"{node.name} is said to be {said}, is {real}")

    watched(module, inputs, compare)
    return wrong


def add_output(graph: Graph, extra: fx.Node, step: str) -> None:
    """The model returns one more value. What is new is described as the rest is."""
    module, out = graph.module, graph.module.graph.output_node()
    given = out.args[0]
    out.args = ((*given, extra) if isinstance(given, tuple) else (given, extra),)
    module.recompile()

    def describe(node: fx.Node, value: Any) -> None:
        if "val" not in node.meta:
            node.meta.update(val=spec_of(value), site="", step=step)

    watched(module, graph.args, describe)
