"""A rule over dimensions on one drawn model: what becomes of each dimension, and whether the model
still computes what it should. Judged by a second analysis of the model as it was before.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...apply.faulty_sites import model_faults
from ...apply.queries import QUESTIONS
from ...channels.analyse import analyse
from ...channels.classes import DimClass, classes
from ...channels.flow import Flow
from ...channels.masked import masked
from ...graph.index import GraphView
from ...graph.snapshot import finish
from ...journal import Journal
from ...measure.compare import distance, drift, model_equality, outputs
from ...measure.samples import Samples
from ...ops.spec import spec_of
from ...rules.binding import NoMatch
from ...rules.rule import CompiledRule, compile_rule
from ...rules.state import State
from ...targets.features import DimReady, FeatureTarget
from ..budget_check import Kept, fresh
from ..choices.source import ChoiceSource, Unsuitable
from ..trial import (
    CRASH,
    FIRED,
    NOISY,
    REFUSED,
    SILENT,
    UNSOUND,
    VACUOUS,
    WRONG,
    Functions,
    Outcome,
    Subject,
    arguments,
    blamed,
    condition,
    elsewhere,
)
from .idle import idled
from .models import Graph, drawn, in_single

MOVES = 1e-9
"""A cut that moves the outputs by less, relative L2, shows nothing."""


def dim_outcomes(subject: Subject, source: ChoiceSource) -> list[Outcome]:
    """One outcome for each dimension of a drawn model, which is cut on the way; none where the
    draws did not fit together. One model in four is in float32.
    """
    try:
        rule, graph = dim_case(subject, source)
    except Unsuitable:
        return []
    return tried_dims(graph_state(subject, graph), rule, graph.seed)


def dim_case(subject: Subject, source: ChoiceSource) -> tuple[CompiledRule, Graph]:
    """The same as `dim_model`, one model in four in float32."""
    rule, graph = dim_model(subject, source)
    return rule, in_single(graph) if source.chance(25) else graph


def dim_model(subject: Subject, source: ChoiceSource) -> tuple[CompiledRule, Graph]:
    """The rule with drawn arguments, and a model for it: with idle features, for a rule that
    perturbs nothing. Raises `Unsuitable`.
    """
    rule, graph = compile_rule(subject.source, arguments(source, subject.source)), drawn(source)
    if subject.source.all(t.Perturb):
        return rule, graph
    return rule, idled(graph, subject.vocabulary, source)


NOTHING_FITS = ("R010", "R011")
"""What a model alone may be the reason of; any other error is one that a guard should prevent."""


def graph_state(subject: Subject, graph: Graph, more: Functions | None = None) -> State:
    """A state to apply rules in; `more` are functions that only variants of the rule call."""
    samples, functions = Samples(graph.args), {**subject.functions, **(more or {})}
    return State(graph.module, subject.vocabulary, functions, QUESTIONS, samples, Journal())


def tried_dims(state: State, rule: CompiledRule, seed: int) -> list[Outcome]:
    """The rule at every dimension that the model has now, one after another."""
    target = FeatureTarget(state, rule)
    return [
        try_dim(target, left, seed + number)
        for number, dim in enumerate(target.candidates())
        for left in target.alive([dim])
    ]


def try_dim(target: FeatureTarget, dim: DimClass, seed: int) -> Outcome:
    """What becomes of one dimension; it is cut where the rule applies. `seed` chooses the other
    inputs on which the cut is compared.
    """
    try:
        found = target.prepare(dim)
        if not isinstance(found, NoMatch):
            return _applied(target, found, seed)
        if found.faults:
            return blamed(found.faults)
        if found.raised and found.code not in NOTHING_FITS:
            return Outcome(UNSOUND, found.code, found.text())
    except LissomError as error:
        return Outcome(UNSOUND, error.diagnostics[0].code, str(error))
    except Exception as error:  # whatever else escapes is a mistake of the engine: a finding
        return Outcome(CRASH, type(error).__name__, traceback.format_exc())
    return Outcome(REFUSED if found.code else SILENT, condition(found), found.text())


# -- after a cut -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Before:
    """The model that is about to be cut: its features, outputs, code and numbers; and the model
    that the cut stands for.
    """

    flow: Flow
    code: str
    numbers: dict[str, Tensor]
    given: list[Any]
    reference: fx.GraphModule

    @classmethod
    def of(cls, state: State, ready: DimReady) -> _Before:
        module = state.module
        finish(module)
        numbers = {name: value.clone() for name, value in module.state_dict().items()}
        given, reference = outputs(module, state.samples.inputs), _reference(state, ready)
        return cls(state.features(), module.code, numbers, given, reference)

    def changed(self) -> list[str]:
        """What the cut did to the model that it was made from."""
        module = self.flow.view.root
        assert isinstance(module, fx.GraphModule)
        now = module.state_dict()
        same = self.code == module.code and self.numbers.keys() == now.keys()
        same = same and all(torch.equal(value, now[name]) for name, value in self.numbers.items())
        return [] if same else ["the original changed"]


def _reference(state: State, ready: DimReady) -> fx.GraphModule:
    """The masked model, after an analysis of its own; the model itself for a rule that perturbs
    nothing. Where the second analysis lists a class in another way, the first one counts.
    """
    site = ready.site
    if not site.rule.source.all(t.Perturb):
        return state.module
    flow = analyse(GraphView(state.module, state.vocabulary))
    free = (d for d in classes(flow) if not d.blocks)
    twin = next((d for d in free if d.roles == site.dim.roles), None)
    if twin is None or twin.size != site.dim.size:
        return masked(state.features(), site.removed)
    kept = set(site.keep)
    return masked(flow, [leaf for place, leaf in enumerate(twin.leaves) if place not in kept])


def _applied(target: FeatureTarget, ready: DimReady, seed: int) -> Outcome:
    """Commits, and compares the whole model with the one that the cut stands for."""
    if ready.site.dim.blocks:
        return Outcome(NOISY, "blocked", f"{ready.site.name}: {ready.site.dim.blocks[0]}")
    state = target.state
    before = _Before.of(state, ready)
    found = _kept(state, before, ready)
    target.commit("trial", ready, 0.0)
    finish(state.module)
    problems = [*before.changed(), *unties(before.flow, state.module), *_misdescribed(state)]
    if problems:
        return Outcome(WRONG, "structure", "; ".join(problems))
    nodes, inputs = len(state.module.graph.nodes), state.samples.inputs
    verdict = model_equality(before.reference, state.module, inputs, nodes)
    faults = () if verdict.holds else model_faults(before.reference, state.module, inputs)
    if faults:
        return blamed(faults)
    if not verdict.holds:
        numbers = f"{verdict.worst} > {verdict.tolerance}; {verdict.detail}"
        return Outcome(WRONG, verdict.claim, f"at {ready.site.name}: {numbers}")
    if found is not None and not found.holds:
        return Outcome(WRONG, "budget", f"the error is {found.given:.4g} of its budget")
    if verdict.how == "not checked":
        return Outcome(VACUOUS, "outputs are rounding alone", verdict.detail)
    others = elsewhere(before.reference, state.module, inputs, seed)
    if isinstance(others, Outcome):
        return others
    if before.reference is not before.flow.view.root and not _moves(before.given, state):
        return Outcome(VACUOUS, "the cut moves no output", ready.site.name)
    return Outcome(FIRED, ratio=_ratio(ready), kept=found, elsewhere=others)


def _ratio(ready: DimReady) -> float:
    """The engine's own comparison of the cut with the masked model, over what it allows."""
    verdict = next(iter(ready.verdicts), None)
    if verdict is None or not verdict.tolerance:
        return 0.0
    return (verdict.worst or 0.0) / verdict.tolerance


def _moves(given: list[Any], state: State) -> bool:
    return farthest(given, outputs(state.module, state.samples.inputs)) > MOVES


def farthest(before: list[Any], after: list[Any]) -> float:
    """The largest relative L2 distance of outputs; infinite where shapes differ."""
    pairs = zip(before, after, strict=True)
    return max((distance(a, b) for a, b in pairs if isinstance(a, Tensor)), default=0.0)


def _kept(state: State, before: _Before, ready: DimReady) -> Kept | None:
    """How the masked model keeps the budget of `error(...)`; None for a rule that states none."""
    claim = next((v for v in ready.verdicts if v.claim.startswith("error(")), None)
    if claim is None or not claim.tolerance:
        return None
    given = state.samples.inputs
    own, other = (drift(state.module, before.reference, [args]) for args in (given, fresh(given)))
    return Kept(own / claim.tolerance, other / claim.tolerance, other)


# -- how a cut model stands ------------------------------------------------------------------------


class Real(fx.Interpreter):
    """Runs a graph and compares what each node gives with what its meta says."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.wrong: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        said = n.meta.get("val")
        if n.op != "output" and not _same(said, spec_of(value)):
            self.wrong.append(f"{n.name} is said to be {said}, is {spec_of(value)}")
        return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _misdescribed(state: State) -> list[str]:
    """Nodes whose recorded shapes are not the real ones."""
    runner = Real(state.module)
    with torch.no_grad():
        runner.run(*state.samples.inputs)
    return runner.wrong


def unties(flow: Flow, module: nn.Module) -> list[str]:
    """Parameters that were one and are no longer."""
    state = module.state_dict(keep_vars=True)
    first: dict[Any, str] = {}
    pairs = [(first.setdefault(key, path), path) for path, key in flow.paths.items()]
    return [f"{b} was {a}" for a, b in pairs if a in state and state.get(b) is not state[a]]
