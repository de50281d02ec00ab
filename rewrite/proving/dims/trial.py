"""A rule over dimensions on one drawn model: what becomes of each dimension, and whether the model
still computes what it should. Judged by a second analysis of the model as it was before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....grammar.tree import tree as t
from ...channels.analyse import analyse
from ...channels.classes import DimClass, classes
from ...channels.flow import Flow
from ...channels.masked import masked
from ...graph.index import GraphView
from ...graph.snapshot import finish
from ...journal import VerdictKind
from ...measure.compare import drift, outputs
from ...rules.rule import CompiledRule, compile_rule
from ...rules.state import State
from ...targets.features import DimReady, FeatureTarget
from ..arguments import arguments
from ..budget_check import Kept, fresh
from ..choices.source import ChoiceSource, Unsuitable
from ..subject import Subject
from ..trial import FIRED, NOISY, VACUOUS, WRONG, Outcome
from ..whole import MOVES, agreement, farthest, graph_state, misdescribed, tried_at
from .idle import idled
from .models import Graph, drawn, in_single


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
    return tried_at(target, dim, lambda ready: _applied(target, ready, seed))


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
    inputs = state.samples.inputs
    wrong = misdescribed(state.module, inputs)
    problems = [*before.changed(), *unties(before.flow, state.module), *wrong]
    if problems:
        return Outcome(WRONG, "structure", "; ".join(problems))
    others = agreement(before.reference, state.module, inputs, seed, ready.site.name)
    if isinstance(others, Outcome) and others.kind != VACUOUS:
        return others
    if found is not None and not found.holds:
        return Outcome(WRONG, "budget", f"the error is {found.given:.4g} of its budget")
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


def _kept(state: State, before: _Before, ready: DimReady) -> Kept | None:
    """How the masked model keeps the budget of `error(...)`; None for a rule that states none."""
    claim = next((v for v in ready.verdicts if v.kind is VerdictKind.ERROR), None)
    if claim is None or not claim.tolerance:
        return None
    given = state.samples.inputs
    own, other = (drift(state.module, before.reference, [args]) for args in (given, fresh(given)))
    return Kept(own / claim.tolerance, other / claim.tolerance, other)


# -- how a cut model stands ------------------------------------------------------------------------


def unties(flow: Flow, module: nn.Module) -> list[str]:
    """Parameters that were one and are no longer."""
    state = module.state_dict(keep_vars=True)
    first: dict[Any, str] = {}
    pairs = [(first.setdefault(key, path), path) for path, key in flow.paths.items()]
    return [f"{b} was {a}" for a, b in pairs if a in state and state.get(b) is not state[a]]
