"""A rule over parameters on one drawn model: what becomes of each parameter, and whether the model
computes with the numbers that the rule's words say, in every layer that shares them. Judged on a
deep copy of the model, into whose memory the numbers are written.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from ....grammar.tree import tree as t
from ...graph.formats import is_channels_last
from ...graph.snapshot import finish
from ...measure.compare import outputs
from ...rules.rule import CompiledRule
from ...rules.state import State
from ...targets.params import ParamReady, ParamSite, ParamTarget
from ...targets.weights import ParamPlace
from ..trial import FIRED, VACUOUS, WRONG, Outcome
from ..whole import (
    MOVES,
    Before,
    agreement,
    farthest,
    misdescribed,
    outcomes_of,
    promise_kept,
    ratio_of,
    tried_at,
    tried_each,
)


def tried_params(state: State, rule: CompiledRule, seed: int) -> list[Outcome]:
    """The rule at every parameter that the model has, one after another."""
    return tried_each(ParamTarget(state, rule), seed, try_param)


param_outcomes = outcomes_of(tried_params)


def try_param(target: ParamTarget, param: ParamPlace, seed: int) -> Outcome:
    """What becomes of one parameter. `seed` chooses the other inputs that are compared."""
    before = Before.of(target.state)
    found = tried_at(target, param, lambda ready: _applied(target, ready, before, seed))
    return before.left_alone(found, param.name)


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


def _problems(before: Before, module: fx.GraphModule, site: ParamSite) -> list[str]:
    """What the commit did beside giving one parameter its numbers."""
    old, new = (m.state_dict(keep_vars=True) for m in (before.module, module))
    if before.is_changed() or old.keys() != new.keys() or before.code != module.code:
        return ["the original changed, or the model has other names"]
    mine = [name for name in old if old[name] is old[site.name]]
    found = [f"{n} was replaced" for n in old if n not in mine and new[n] is not old[n]]
    found += [f"{n} was {site.name}" for n in mine if new[n] is not new[site.name]]
    return found + _otherwise(old[site.name], new[site.name])


def _otherwise(old: Tensor, new: Tensor) -> list[str]:
    """How the new tensor is another kind of thing than the old one."""
    kinds = [(type(x), x.dtype, x.shape, x.requires_grad, is_channels_last(x)) for x in (old, new)]
    return [] if kinds[0] == kinds[1] else [f"{kinds[0]} became {kinds[1]}"]


def _applied(target: ParamTarget, ready: ParamReady, before: Before, seed: int) -> Outcome:
    """Commits, and compares the whole model with the one that the rule's words mean."""
    state, site = target.state, ready.site
    inputs = state.samples.inputs
    reference, given = meant(before.module, site), outputs(before.module, inputs)
    found = promise_kept(before.module, reference, ready, inputs)
    target.commit("trial", ready, 0.0)
    finish(state.module)
    problems = [*_problems(before, state.module, site), *misdescribed(state.module, inputs)]
    if problems:
        return Outcome(WRONG, "structure", "; ".join(problems))
    others = agreement(reference, state.module, inputs, seed, site.name)
    if isinstance(others, Outcome):
        return others
    if found is not None and not found.holds:
        return Outcome(WRONG, "budget", f"the error is {found.given:.4g} of its budget")
    if farthest(given, outputs(state.module, inputs)) <= MOVES and site.rule.kind == "approx":
        return Outcome(VACUOUS, "the numbers move no output", site.name)
    return Outcome(FIRED, ratio=ratio_of(ready), kept=found, elsewhere=others)
