"""Evidence about one rule that ranges over something of the whole model, in the shape of every
other proof.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...grammar.tree import tree as t
from ...grammar.tree.clauses import has_exit
from ..rules.rule import CompiledRule, compile_rule
from ..rules.state import State
from .arguments import arguments
from .choices.source import Rolled
from .dims.mutants import dim_score, dim_specimens
from .dims.near import dim_near
from .dims.trial import dim_case, dim_outcomes, tried_dims
from .exits.mutants import exit_score
from .exits.trial import exit_outcomes, tried_exits
from .mutants.mutate import Score
from .near_miss import NearResult
from .one_guard import Drawn
from .params.mutants import param_score, param_specimens
from .params.near import param_near
from .params.trial import param_outcomes, tried_params
from .prove import Outcomes, Proof, explore, guards_of
from .subject import Subject
from .trial import Outcome
from .values.mutants import value_score
from .values.near import value_near
from .values.trial import tried_values, value_outcomes
from .whole import drawn_case

Tapes = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Ground:
    """How rules of one kind are tried: on which models, what becomes of all places in one, on which
    near-misses, and with which mistakes planted.
    """

    case: Drawn
    tried: Callable[[State, CompiledRule, int], list[Outcome]]
    outcomes: Outcomes
    near: Callable[[Subject, Tapes, int], list[NearResult]]
    score: Callable[[Subject, Tapes], Score]


def _dim_score(subject: Subject, tapes: Tapes) -> Score:
    return dim_score(subject, dim_specimens(subject, tapes))


def _param_score(subject: Subject, tapes: Tapes) -> Score:
    return param_score(subject, param_specimens(subject, tapes))


_DIMS = Ground(dim_case, tried_dims, dim_outcomes, dim_near, _dim_score)
_PARAMS = Ground(drawn_case, tried_params, param_outcomes, param_near, _param_score)


_VALUES = Ground(drawn_case, tried_values, value_outcomes, value_near, value_score)


_EXITS = Ground(drawn_case, tried_exits, exit_outcomes, value_near, exit_score)


def ground_of(rule: t.Rule) -> Ground:
    if has_exit(rule):
        return _EXITS
    if rule.all(t.MatchValue):
        return _VALUES
    return _PARAMS if rule.all(t.MatchParam) else _DIMS


def prove_wide(subject: Subject, models: int, start: int = 0) -> Proof:
    """Tries a rule over dimensions, parameters or values on `models` random models, each of their
    places one after another, on near-misses, and with mistakes planted in its text. `start` is the
    seed.

    Which features stand or fall together, and which layers share a memory, is no polynomial
    identity: nothing is shown in exact arithmetic here.
    """
    begun, ground = time.perf_counter(), ground_of(subject.source)
    rule = compile_rule(subject.source, arguments(Rolled(start), subject.source))
    explored = explore(subject, models, start, ground.outcomes, any)
    proof = Proof(rule.name, rule.kind, rule.digest, explored, guards_of(rule))
    proof.died = explored.died
    if explored.failure is None and explored.tapes:
        proof.near = ground.near(subject, explored.tapes, start)
        proof.mutants = ground.score(subject, explored.tapes)
    proof.seconds = time.perf_counter() - begun
    return proof
