"""Dimensions of generated models, each with whether the cut is what the rule says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...channels.classes import DimClass
from ...ops.call import OpCall
from ...rules.dimension import DimValue
from ...rules.facts import Ranking
from ...rules.rule import CompiledRule, compile_rule
from ...rules.scope import Scope
from ...rules.state import State
from ...targets.dims import guard_miss
from ...targets.features import FeatureTarget
from ..choices.source import ChoiceSource
from ..dims.trial import dim_case, try_dim
from ..subject import Subject
from ..trial import FIRED, UNSOUND, WRONG, Outcome
from ..whole import graph_state
from .instances import HoleSite


def dim_instances(source: ChoiceSource, subject: Subject, early: t.Rule) -> list[HoleSite]:
    """The dimensions of one generated model at which `early`, the rule as far as it is asked before
    the hole, holds. Raises `Unsuitable`.
    """
    rule, graph = dim_case(subject, source)
    state, asked = graph_state(subject, graph), compile_rule(early, rule.given)
    target, found = FeatureTarget(state, rule), []
    for number, dim in enumerate(target.candidates()):
        for left in target.alive([dim]):
            scope = _scope(state, asked, left)
            calls = list(_calls(left, state)) if scope is not None else []
            outcome = try_dim(target, left, graph.seed + number)
            if scope is not None:
                size = left.size + len(graph.module.graph.nodes)
                found.append(HoleSite(scope, _agrees(outcome), _why(outcome), size, calls))
    return found


def _scope(state: State, rule: CompiledRule, dim: DimClass) -> Scope | None:
    """What names mean at a dimension; None where it does not come so far."""
    scope = state.scope({**rule.args, rule.dim: DimValue.of(state.features(), dim)})
    scope.facts.ranking = Ranking()
    try:
        return scope if guard_miss(rule, scope) is None else None
    except LissomError:
        return None


def _agrees(outcome: Outcome) -> bool | None:
    if outcome.kind == FIRED:
        return True
    judged = outcome.kind == WRONG or (outcome.kind == UNSOUND and outcome.condition == "V101")
    return False if judged else None


def _why(outcome: Outcome) -> str:
    seen = re.search(r"largest difference (\S+), allowed", outcome.detail)
    if seen is not None:
        return f"the cut model differs by {seen[1]}"
    return f"{outcome.condition}: {outcome.detail}" if outcome.kind == WRONG else ""


def _calls(dim: DimClass, state: State) -> Iterator[OpCall]:
    """The ops that read or give the dimension."""
    flow, wanted = state.features(), set(dim.leaves)
    carry = {
        node
        for node, results in flow.values.items()
        for tracks in results
        for track in tracks
        for atom in track.unique().tolist()
        if atom and not wanted.isdisjoint(flow.atoms.leaves(atom))
    }
    for node in state.module.graph.nodes:
        call = state.view.call(node)
        if call is not None and not carry.isdisjoint((node, *node.all_input_nodes)):
            yield call
