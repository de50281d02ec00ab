"""Evidence about one rule: what was tried, how often, and what was found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ...grammar.documents import sha256
from ...grammar.tree import tree as t
from ..measure.twins import KernelFault
from ..rules.rule import CompiledRule, compile_rule
from .algebra.field import FieldResult
from .arguments import arguments
from .bits.dyadic import DIFFERS, DyadicResult
from .blamed import Blamed, counted
from .budget_check import Kept
from .choices.shrink import shrunk
from .choices.source import ChoiceSource, Draw, Recorded, Replayed, Rolled, Unsuitable
from .mutants.mutants import mutants
from .mutants.mutate import Score
from .near_miss import NearResult, near_misses
from .stages import Bench, tried_exactly, tried_mutants, tried_near
from .subject import Subject
from .trial import (
    BAD,
    FIRED,
    OPAQUE,
    REFUSED,
    SILENT,
    VACUOUS,
    WRONG,
    Outcome,
    model,
    trial,
)
from .worker import Death, Worker, survived

LEAST_FIRED = 50
"""Fewer models than this in which a rule fired show nothing (V001)."""

LEAST_KEPT, MOST_KEPT = 0.75, 3_000
"""Applications of an approximate rule to look for, over the models asked for, and how many suffice:
300 of 400 that keep their budget bound the rate of those that do not to 1%, with 95% confidence,
3,000 to 0.1%.
"""

Outcomes = Callable[[Subject, ChoiceSource], list[Outcome]]
"""What becomes of one drawn model."""

NOT_TESTED = "NOT TESTED"
"""The verdict on a rule that was never applied: nothing is known of it."""

MOST_DIED = 32
"""Models that may end their process before no more are drawn."""

KEPT = 64
"""Models in which the rule fired that are kept for near-misses and mutants, as tapes."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A mistake that was found, and the choices that lead to it."""

    outcome: Outcome
    tape: tuple[int, ...]


@dataclass(slots=True)
class Explored:
    """What became of generated models: instances by outcome, and by the condition that decided."""

    models: int = 0
    fired: int = 0
    silent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    opaque: Counter[str] = field(default_factory=Counter)
    undrawn: Counter[str] = field(default_factory=Counter)
    vacuous: Counter[str] = field(default_factory=Counter)
    elsewhere: Counter[str] = field(default_factory=Counter)
    ratio: float = 0.0
    tapes: list[tuple[int, ...]] = field(default_factory=list)
    failure: Failure | None = None
    kept: list[Kept] = field(default_factory=list)
    faults: list[KernelFault] = field(default_factory=list)
    died: list[Death] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.kept += [outcome.kept] if outcome.kept is not None else []
        self.faults += outcome.faults
        self.ratio = max(self.ratio, outcome.ratio)
        self.elsewhere.update(outcome.elsewhere)
        self.fired += outcome.kind == FIRED
        counters = {
            SILENT: self.silent,
            REFUSED: self.refused,
            OPAQUE: self.opaque,
            VACUOUS: self.vacuous,
        }
        if outcome.kind in counters:
            counters[outcome.kind][outcome.condition] += 1


@dataclass(slots=True)
class Proof:
    """Everything that was found out about one rule. `stopped`: why nothing more was tried."""

    rule: str
    kind: str
    digest: str
    explored: Explored
    guards: tuple[str, ...]
    near: list[NearResult] = field(default_factory=list)
    mutants: Score = field(default_factory=lambda: Score((), 0))
    algebra: list[FieldResult] = field(default_factory=list)
    bits: list[DyadicResult] = field(default_factory=list)
    died: list[Death] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""

    @property
    def failures(self) -> list[Outcome]:
        """Mistakes: of the rule, or of the engine."""
        first = [self.explored.failure.outcome] if self.explored.failure else []
        near = [outcome for result in self.near for outcome in result.wrong]
        wrong = [Outcome(WRONG, "algebra", r.reason) for r in self.algebra if r.verdict == "wrong"]
        differ = [_differing(r) for r in self.bits if r.verdict == DIFFERS]
        return [*first, *near, *wrong, *differ]

    @property
    def blamed(self) -> tuple[Blamed, ...]:
        """Kernels for which sites were left."""
        near = [fault for result in self.near for fault in result.faults]
        return counted([*self.explored.faults, *near])

    @property
    def weak(self) -> list[str]:
        """What was not shown, in words."""
        found = [self.stopped] if self.stopped else []
        if not self.explored.fired and not self.failures:
            return found or [_why_never(self.explored, self.guards)]
        if self.explored.fired < LEAST_FIRED:
            found.append(f"fired in {self.explored.fired} models only")
        found += [f"no model violates `{g}`" for g in self.guards if not self._violated(g)]
        return found + [f"mutant survives: {fate.mutant.name}" for fate in self.mutants.survivors]

    def _violated(self, guard: str) -> bool:
        seen = (self.explored.silent, *(result.conditions for result in self.near))
        return any(counter[guard] for counter in seen)

    @property
    def verdict(self) -> str:
        if self.failures:
            return "FAILED"
        if self.stopped or not self.explored.fired:
            return NOT_TESTED
        return "weakly verified" if self.weak else "verified"


def untested(source: t.Rule, why: str) -> Proof:
    """Of a rule on which nothing could be tried."""
    digest = sha256(source.span.text)
    return Proof(source.name.text, source.kind, digest, Explored(), (), stopped=why)


def _why_never(found: Explored, guards: Sequence[str]) -> str:
    """What stood in the way of a rule that never fired: the last guard that places came to, or the
    condition that most of them missed.
    """
    counters = (found.silent, found.refused, found.opaque, found.vacuous)
    places = sum(map(Counter.total, counters))
    if not places and found.died:
        return f"each of its models ended the process that tried it: {found.died[0].text}"
    if not places:
        drawn = found.undrawn.most_common(1)
        return "no model with its left side could be drawn" + (f": {drawn[0][0]}" if drawn else "")
    counts = sum(counters, Counter[str]())
    reached = next((guard for guard in reversed(guards) if counts[guard]), None)
    said = reached or counts.most_common(1)[0][0]
    return f"never fired: `{said}` stood in the way at {counts[said]:,} of {places:,} places"


def _differing(found: DyadicResult) -> Outcome:
    place = f"output {found.output} at {list(found.index)}"
    return Outcome(WRONG, "bits", f"{place}: {found.before!r} before, {found.after!r} after")


def prove(subject: Subject, models: int, start: int = 0) -> Proof:
    """Tries one rule on `models` generated models, on near-misses, in exact arithmetic, and with
    mistakes planted in its text. `start` is the seed.
    """
    begun = time.perf_counter()
    rule = compile_rule(subject.source, arguments(Rolled(start), subject.source))
    nears, wrong = near_misses(rule, subject), mutants(subject.source, subject.vocabulary)
    with Worker(Bench(subject, partial(_drawn, subject, _outcomes), nears, wrong)) as worker:
        explored = _explored(subject, models, start, worker, all)
        proof = Proof(rule.name, rule.kind, rule.digest, explored, guards_of(rule))
        proof.died, tapes = explored.died, explored.tapes
        if explored.failure is None and tapes:
            proof.near = tried_near(worker, nears, tapes, proof.died)
            proof.algebra, proof.bits = tried_exactly(worker, tapes, proof.died)
            proof.mutants = tried_mutants(worker, wrong, tapes, proof.died)
    proof.seconds = time.perf_counter() - begun
    return proof


def guards_of(rule: CompiledRule) -> tuple[str, ...]:
    """The text of each guard, place and `unless`, as misses name it."""
    guards = [g for w in rule.source.all(t.Where) for g in w.guards if isinstance(g, t.Guard)]
    asked = [*guards, *rule.pattern.sites, *rule.source.all(t.Unless)]
    return tuple(clause.span.flat for clause in asked)


# -- exploring -------------------------------------------------------------------------------------


ROUNDS = 8
"""How many times `models` models are drawn where the rule fires too seldom."""

SPARE = 8
"""Draws for each model that is wanted: some lead nowhere."""


def explore(
    subject: Subject,
    models: int,
    start: int = 0,
    outcomes_of: Outcomes | None = None,
    keeps: Callable[[Iterable[bool]], bool] = all,
) -> Explored:
    """Tries the rule on `models` generated models, and on more where it fired too seldom. A mistake
    ends the search, and its choices are made small.

    outcomes_of: what becomes of one drawn model; instances of the pattern are planted by default.
    keeps: whether the choices of a model are kept, by which of its instances the rule fired on.
    """
    tried = partial(_drawn, subject, outcomes_of or _outcomes)
    with Worker(Bench(subject, tried)) as worker:
        return _explored(subject, models, start, worker, keeps)


def _explored(
    subject: Subject,
    models: int,
    start: int,
    worker: Worker,
    keeps: Callable[[Iterable[bool]], bool],
) -> Explored:
    found = Explored()
    kept = min(int(LEAST_KEPT * models), MOST_KEPT) if subject.source.kind == "approx" else 0
    wanted = max(LEAST_FIRED, kept)
    for number in range(SPARE * ROUNDS * models):
        enough = found.fired >= wanted or found.models >= ROUNDS * models
        hopeless = not found.models and number > SPARE * models
        hopeless = hopeless or len(found.died) >= MOST_DIED
        if found.failure is not None or hopeless or (found.models >= models and enough):
            break
        draw, name = _draw(found, f"{start}/{number}"), f"model {number} of seed {start}"
        drawn = survived(found.died, name, worker, "drawn", draw)
        if isinstance(drawn, str):  # the draws do not fit together
            found.undrawn[drawn] += 1
        elif drawn is not None and drawn[1]:
            tape, outcomes = drawn
            _note(found, tape, outcomes, keeps)
    if found.failure is not None:
        name = "making a mistake smaller"
        found.failure = survived([], name, worker, "drawn", found.failure) or found.failure
    return found


def _drawn(
    subject: Subject, tried: Outcomes, given: Draw | Failure
) -> tuple[tuple[int, ...], list[Outcome]] | Failure | str:
    """The choices of one model and what became of it, or why they do not fit together; of a mistake
    the smallest model.
    """
    if isinstance(given, Failure):
        return _smallest(subject, given, tried)
    source = Recorded(given.source())
    try:
        outcomes = tried(subject, source)
    except Unsuitable as error:
        return str(error)
    return tuple(source.tape), outcomes


def _draw(found: Explored, seed: str) -> Draw:
    """New choices; where a rule fires in less than half of the models, every other time those of a
    model in which it fired, with some made anew.
    """
    picked = Rolled(f"{seed} like")
    if 2 * found.fired >= found.models or not found.tapes or picked.chance(50):
        return Draw(seed)
    return Draw(seed, picked.choice(found.tapes))


def _outcomes(subject: Subject, source: ChoiceSource) -> list[Outcome]:
    """What became of one model. Raises `Unsuitable` where the draws do not fit together."""
    return trial(subject, model(source, subject))


def _note(
    found: Explored,
    tape: tuple[int, ...],
    outcomes: list[Outcome],
    keeps: Callable[[Iterable[bool]], bool],
) -> None:
    wrong = next((outcome for outcome in outcomes if outcome.kind in BAD), None)
    if wrong is not None:
        found.failure = Failure(wrong, tape)
        return
    found.models += 1
    for outcome in outcomes:
        found.add(outcome)
    if len(found.tapes) < KEPT and keeps(outcome.kind == FIRED for outcome in outcomes):
        found.tapes.append(tape)


def _smallest(subject: Subject, failure: Failure, tried: Outcomes) -> Failure:
    """The same mistake on a smaller model."""
    known = {failure.tape: failure}

    def fails(tape: tuple[int, ...]) -> tuple[int, ...] | None:
        source = Recorded(Replayed(tape))
        try:
            outcomes = tried(subject, source)
        except Unsuitable:
            return None
        outcome = next((o for o in outcomes if (o.kind, o.condition) == wanted), None)
        used = tuple(source.tape)
        if outcome is not None:
            known[used] = Failure(outcome, used)
        return used if outcome is not None else None

    wanted = (failure.outcome.kind, failure.outcome.condition)
    return known[shrunk(failure.tape, fails)]
