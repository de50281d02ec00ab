"""A rule over parameters on one drawn model: what becomes of each parameter, and whether the model
computes with the numbers that the rule's words say, in every layer that shares them. Judged on a
deep copy of the model, into whose memory the numbers are written.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ....grammar.tree import tree as t
from ...graph.formats import is_channels_last
from ...graph.snapshot import finish, snapshot
from ...journal import VerdictKind
from ...measure.compare import drift, outputs
from ...rules.rule import CompiledRule, compile_rule
from ...rules.state import State
from ...targets.params import ParamReady, ParamSite, ParamTarget
from ...targets.weights import Param
from ..budget_check import Kept, fresh
from ..choices.source import ChoiceSource, Unsuitable
from ..dims.models import Graph, drawn, in_single
from ..trial import FIRED, REFUSED, SILENT, VACUOUS, WRONG, Outcome, Subject, arguments
from ..whole import MOVES, agreement, farthest, graph_state, misdescribed, tried_at


def param_outcomes(subject: Subject, source: ChoiceSource) -> list[Outcome]:
    """One outcome for each parameter of a drawn model, which gets its numbers on the way; none
    where the draws did not fit together. One model in four is in float32.
    """
    try:
        rule, graph = param_case(subject, source)
    except Unsuitable:
        return []
    return tried_params(graph_state(subject, graph), rule, graph.seed)


def param_case(subject: Subject, source: ChoiceSource) -> tuple[CompiledRule, Graph]:
    """The same as `param_model`, one model in four in float32."""
    rule, graph = param_model(subject, source)
    return rule, in_single(graph) if source.chance(25) else graph


def param_model(subject: Subject, source: ChoiceSource) -> tuple[CompiledRule, Graph]:
    """The rule with drawn arguments, and a model for it. Raises `Unsuitable`."""
    return compile_rule(subject.source, arguments(source, subject.source)), drawn(source)


def tried_params(state: State, rule: CompiledRule, seed: int) -> list[Outcome]:
    """The rule at every parameter that the model has, one after another."""
    target = ParamTarget(state, rule)
    return [
        try_param(target, left, seed + number)
        for number, param in enumerate(target.candidates())
        for left in target.alive([param])
    ]


def try_param(target: ParamTarget, param: Param, seed: int) -> Outcome:
    """What becomes of one parameter. `seed` chooses the other inputs that are compared."""
    before = _Before.of(target.state)
    found = tried_at(target, param, lambda ready: _applied(target, ready, before, seed))
    if found.kind in (SILENT, REFUSED) and before.is_changed():
        return Outcome(WRONG, "structure", f"at {param.name}: the original changed")
    return found


# -- what the words say ----------------------------------------------------------------------------


def literal_model(module: fx.GraphModule, site: ParamSite, clause: type) -> fx.GraphModule:
    """A copy of the model, in whose parameter stand the numbers that a clause of the rule says, the
    old ones where it says none.
    """
    copied = copy.deepcopy(module)
    steps = [s for c in site.rule.source.all(clause) for s in _steps(c)]
    for step in steps[-1:]:
        value = site.scope.number(step.value)
        with torch.no_grad():
            _tensor(copied, site.name).copy_(value)
    return copied


def _steps(clause: t.Perturb | t.Rewrite) -> tuple[t.Assign, ...]:
    return clause.moves if isinstance(clause, t.Perturb) else clause.steps  # type: ignore[return-value]


def meant(module: fx.GraphModule, site: ParamSite) -> fx.GraphModule:
    """What the model must equal: with the perturbed numbers; with the stored ones where only those
    of an approximate rule are said.
    """
    perturbs = site.rule.kind != "approx" or site.rule.source.all(t.Perturb)
    return literal_model(module, site, t.Perturb if perturbs else t.Rewrite)


def _tensor(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


# -- after a commit --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Before:
    """A model that shares all that the working one holds, and its numbers and code."""

    module: fx.GraphModule
    numbers: dict[str, Tensor]
    code: str

    @classmethod
    def of(cls, state: State) -> _Before:
        finish(state.module)
        module = snapshot(state.module)
        numbers = {name: held.clone() for name, held in module.state_dict().items()}
        return cls(module, numbers, module.code)

    def is_changed(self) -> bool:
        """Whether somebody wrote into what the snapshot shares, or exchanged it there."""
        now = self.module.state_dict()
        return any(not torch.equal(now[name], held) for name, held in self.numbers.items())

    def problems(self, module: fx.GraphModule, site: ParamSite) -> list[str]:
        """What the commit did beside giving one parameter its numbers."""
        old, new = (m.state_dict(keep_vars=True) for m in (self.module, module))
        if self.is_changed() or old.keys() != new.keys() or self.code != module.code:
            return ["the original changed, or the model has other names"]
        mine = [name for name in old if old[name] is old[site.name]]
        found = [f"{n} was replaced" for n in old if n not in mine and new[n] is not old[n]]
        found += [f"{n} was {site.name}" for n in mine if new[n] is not new[site.name]]
        return found + _otherwise(old[site.name], new[site.name])


def _otherwise(old: Tensor, new: Tensor) -> list[str]:
    """How the new tensor is another kind of thing than the old one."""
    kinds = [(type(x), x.dtype, x.shape, x.requires_grad, is_channels_last(x)) for x in (old, new)]
    return [] if kinds[0] == kinds[1] else [f"{kinds[0]} became {kinds[1]}"]


def _applied(target: ParamTarget, ready: ParamReady, before: _Before, seed: int) -> Outcome:
    """Commits, and compares the whole model with the one that the rule's words mean."""
    state, site = target.state, ready.site
    inputs = state.samples.inputs
    reference, given = meant(before.module, site), outputs(before.module, inputs)
    found = _kept(before.module, reference, ready, inputs)
    target.commit("trial", ready, 0.0)
    finish(state.module)
    problems = [*before.problems(state.module, site), *misdescribed(state.module, inputs)]
    if problems:
        return Outcome(WRONG, "structure", "; ".join(problems))
    others = agreement(reference, state.module, inputs, seed, site.name)
    if isinstance(others, Outcome):
        return others
    if found is not None and not found.holds:
        return Outcome(WRONG, "budget", f"the error is {found.given:.4g} of its budget")
    if farthest(given, outputs(state.module, inputs)) <= MOVES and site.rule.kind == "approx":
        return Outcome(VACUOUS, "the numbers move no output", site.name)
    return Outcome(FIRED, ratio=_ratio(ready), kept=found, elsewhere=others)


def _ratio(ready: ParamReady) -> float:
    """The engine's own comparison of both halves, over what it allows."""
    verdict = next(iter(ready.verdicts), None)
    if verdict is None or not verdict.tolerance:
        return 0.0
    return (verdict.worst or 0.0) / verdict.tolerance


def _kept(
    module: fx.GraphModule, reference: fx.GraphModule, ready: ParamReady, given: tuple[Tensor, ...]
) -> Kept | None:
    """How the perturbed model keeps the budget of `error(...)`; None for a rule that states
    none.
    """
    claim = next((v for v in ready.verdicts if v.kind is VerdictKind.ERROR), None)
    if claim is None or not claim.tolerance:
        return None
    own, other = (drift(module, reference, [args]) for args in (given, fresh(given)))
    return Kept(own / claim.tolerance, other / claim.tolerance, other)
