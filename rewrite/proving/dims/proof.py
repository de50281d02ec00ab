"""Evidence about one rule over dimensions, in the shape of every other proof."""

from __future__ import annotations

import time

from ...rules.rule import compile_rule
from ..choices.source import Rolled
from ..prove import Proof, explore, guards_of
from ..trial import Subject, arguments
from .mutants import dim_score, dim_specimens
from .near import dim_near
from .trial import dim_outcomes


def prove_dims(subject: Subject, models: int, start: int = 0) -> Proof:
    """Tries a rule over dimensions on `models` random models, each of their dimensions one after
    another, on near-misses, and with mistakes planted in its text. `start` is the seed.

    Which features stand or fall together is no polynomial identity: nothing is shown in exact
    arithmetic here.
    """
    begun = time.perf_counter()
    rule = compile_rule(subject.source, arguments(Rolled(start), subject.source))
    explored = explore(subject, models, start, dim_outcomes, any)
    proof = Proof(rule.name, rule.kind, rule.digest, explored, guards_of(rule))
    proof.died = explored.died
    if explored.failure is None and explored.tapes:
        proof.near = dim_near(subject, explored.tapes, start)
        proof.mutants = dim_score(subject, dim_specimens(subject, explored.tapes))
    proof.seconds = time.perf_counter() - begun
    return proof
