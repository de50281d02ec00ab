"""What a rule goes through on models in which it fires: near-misses, exact arithmetic, mistakes
planted in its text. Each trial runs where it may end its process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ..match.site import Site, examine
from ..rules.binding import Bindings
from .algebra.field import WHOLE, FieldResult, check_field
from .bits.dyadic import DyadicResult, check_dyadic
from .choices.source import Replayed
from .models.grown import Grown
from .mutants.mutants import Mutant
from .mutants.mutate import Fate, Score, Specimen, kill, specimens
from .near_miss import NearMiss, NearResult, examine_near
from .subject import Subject
from .trial import bound, model, state_of
from .worker import Death, Worker, survived

FIELDS = 32
"""Models whose algebra is decided in a finite field: as many draws of shapes and settings."""

DYADIC = 32
"""Models that run on numbers without rounding."""

Tapes = Sequence[tuple[int, ...]]


class Bench:
    """What a worker does for one rule: the methods, called by name. `drawn`: what becomes of one
    drawn model. What near-misses and mutants there are is found out once, before there is a worker.
    """

    def __init__(
        self,
        subject: Subject,
        drawn: Callable[..., Any],
        nears: Sequence[NearMiss] = (),
        wrong: Sequence[Mutant] = (),
    ) -> None:
        self.subject, self.drawn, self.nears, self.wrong = subject, drawn, nears, wrong
        self._specimens: list[Specimen] | None = None

    def __call__(self, what: str, *args: Any) -> Any:
        return getattr(self, what)(*args)

    def near(self, number: int, tapes: Tapes) -> tuple[Any, ...]:
        return examine_near(self.nears[number], self.subject, tapes).found

    def algebra(self, tape: Sequence[int]) -> list[FieldResult]:
        return list(algebra(self.subject, tape))

    def bits(self, tape: Sequence[int]) -> DyadicResult:
        return check_dyadic(self.subject, again(self.subject, tape))

    def mutant(self, number: int, tapes: Tapes) -> tuple[Any, ...]:
        """How many models it was tried on at most, and its fate."""
        if self._specimens is None:
            self._specimens = specimens(
                self.subject, [partial(again, self.subject, tape) for tape in tapes]
            )
        return (len(self._specimens), *kill(self.wrong[number], self._specimens).found)


def again(subject: Subject, tape: Sequence[int]) -> Grown:
    """The model that these choices led to."""
    return model(Replayed(tape), subject)


def algebra(subject: Subject, tape: Sequence[int]) -> Iterator[FieldResult]:
    """Each site of a model in a finite field, where that can decide anything."""
    grown = again(subject, tape)
    state = state_of(subject, grown)
    for planted in grown.planted:
        bindings = bound(state, grown.rule, planted)
        site = examine(state, grown.rule, bindings) if isinstance(bindings, Bindings) else None
        found = check_field(state, site) if isinstance(site, Site) else None
        if found is not None and found.reason != WHOLE:
            yield found


def tried_near(
    worker: Worker, nears: Sequence[NearMiss], tapes: Tapes, died: list[Death]
) -> list[NearResult]:
    """Every kind of near-miss."""
    results = []
    for number, near in enumerate(nears):
        found = survived(died, f"near-miss: {near.name}", worker, "near", number, tapes)
        results.append(NearResult(near) if found is None else NearResult(near, *found))
    return results


def tried_exactly(
    worker: Worker, tapes: Tapes, died: list[Death]
) -> tuple[list[FieldResult], list[DyadicResult]]:
    """In a finite field, and on numbers that leave no rounding."""
    sites = [
        survived(died, f"algebra, model {number}", worker, "algebra", tape) or []
        for number, tape in enumerate(tapes[:FIELDS])
    ]
    results = [
        survived(died, f"bits, model {number}", worker, "bits", tape)
        for number, tape in enumerate(tapes[:DYADIC])
    ]
    return [site for found in sites for site in found], [r for r in results if r is not None]


def tried_mutants(
    worker: Worker, wrong: Sequence[Mutant], tapes: Tapes, died: list[Death]
) -> Score:
    """Every mutant; one that ends the process is neither noticed nor overlooked."""
    fates, count = [], 0
    for number, mutant in enumerate(wrong):
        told = survived(died, f"mutant: {mutant.name}", worker, "mutant", number, tapes)
        if told is not None:
            count = told[0]
            fates.append(Fate(mutant, *told[1:]))
    return Score.of(fates, count)
