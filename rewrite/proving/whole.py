"""Rules that range over something of the whole model: what becomes of one place, and whether the
model behind it computes what it should.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from ...grammar.diagnostics import LissomError
from ...grammar.tree.clauses import has_exit
from ..apply.faulty_sites import model_faults
from ..apply.queries import QUESTIONS
from ..graph.runs import watched
from ..graph.snapshot import finish, snapshot
from ..journal import Journal, VerdictKind
from ..measure.compare import distance, drift, model_equality
from ..measure.samples import Example, Samples
from ..ops.spec import spec_of
from ..rules.binding import NoMatch
from ..rules.rule import CompiledRule, compile_rule
from ..rules.state import State
from ..targets.target import Prepared, Target
from .arguments import arguments
from .budget_check import Kept, fresh
from .choices.source import ChoiceSource, Unsuitable
from .dims.models import Graph, drawn, in_single
from .models.variants import longer
from .mutants.mutate import RAISED
from .subject import Functions, Subject
from .trial import (
    CRASH,
    REFUSED,
    SILENT,
    UNSOUND,
    VACUOUS,
    WRONG,
    Outcome,
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

NOTHING_FITS = ("K002", "R010", "R011", "R017")
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


def drawn_model(subject: Subject, source: ChoiceSource) -> tuple[CompiledRule, Graph]:
    """The rule with drawn arguments, and a model for it. Raises `Unsuitable`."""
    rule = compile_rule(subject.source, arguments(source, subject.source))
    return rule, drawn(source, classifies=has_exit(subject.source))


def drawn_case(subject: Subject, source: ChoiceSource) -> tuple[CompiledRule, Graph]:
    """The same, one model in four in float32."""
    rule, graph = drawn_model(subject, source)
    return rule, in_single(graph) if source.chance(25) else graph


def outcomes_of(
    tried: Callable[[State, CompiledRule, int], list[Outcome]],
) -> Callable[[Subject, ChoiceSource], list[Outcome]]:
    """One outcome for each place of a drawn model, which is changed on the way; none where the
    draws did not fit together.
    """

    def outcomes(subject: Subject, source: ChoiceSource) -> list[Outcome]:
        try:
            rule, graph = drawn_case(subject, source)
        except Unsuitable:
            return []
        return tried(graph_state(subject, graph), rule, graph.seed)

    return outcomes


def tried_each(
    target: Target[P, Any], seed: int, tried: Callable[[Any, P, int], Outcome]
) -> list[Outcome]:
    """The rule at every place that the model has, one after another."""
    return [
        tried(target, left, seed + number)
        for number, place in enumerate(target.candidates())
        for left in target.alive([place])
    ]


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


@dataclass(frozen=True, slots=True)
class Before:
    """A model that shares all that the working one holds, and its numbers and code."""

    module: fx.GraphModule
    numbers: dict[str, Tensor]
    code: str

    @classmethod
    def of(cls, state: State) -> Before:
        finish(state.module)
        module = snapshot(state.module)
        numbers = {name: held.clone() for name, held in module.state_dict().items()}
        return cls(module, numbers, module.code)

    def is_changed(self) -> bool:
        """Whether somebody wrote into what the snapshot shares, or exchanged it there."""
        now = self.module.state_dict()
        return any(not torch.equal(now[name], held) for name, held in self.numbers.items())

    def left_alone(self, found: Outcome, name: str) -> Outcome:
        """The outcome; where nothing was applied, that the model is as it was."""
        if found.kind in (SILENT, REFUSED) and self.is_changed():
            return Outcome(WRONG, "structure", f"at {name}: the original changed")
        return found


def ratio_of(ready: Prepared) -> float:
    """The engine's own comparison of both halves, over what it allows."""
    verdict = next(iter(ready.verdicts), None)
    if verdict is None or not verdict.tolerance:
        return 0.0
    return (verdict.worst or 0.0) / verdict.tolerance


def promise_kept(
    module: fx.GraphModule, reference: fx.GraphModule, ready: Prepared, given: tuple[Tensor, ...]
) -> Kept | None:
    """How the perturbed model keeps the budget of `error(...)`; None for a rule that states
    none.
    """
    claim = next((v for v in ready.verdicts if v.kind is VerdictKind.ERROR), None)
    if claim is None or not claim.tolerance:
        return None
    own, other = (drift(module, reference, [args]) for args in (given, fresh(given)))
    return Kept(own / claim.tolerance, other / claim.tolerance, other)
