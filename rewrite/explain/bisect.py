"""Which rewrite of a pipeline breaks what the pipeline promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...grammar.diagnostics import LissomError
from ..journal import Applied, Journal, StageEnd, Verdict
from ..pipeline.compile import Compiled

BREAKS = "V102"
"""What the pipeline raises where an exact stage is not equal, or a budget breaks under `stop`."""

Sites = list[tuple[str, str]]
Run = Callable[[int | None, Journal, Sites | None], Compiled]
"""Compiles with at most so many rewrites, and writes events into the journal. The last: rules and
sites of the first run, so that measurements of time choose them again.
"""


@dataclass(frozen=True, slots=True)
class BisectRun:
    """One compilation: its events, and what it broke ("" if nothing)."""

    journal: Journal
    broken: str

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The last verdict of each claim about a stage."""
        ends = self.journal.of(StageEnd)
        return {verdict.claim: verdict for end in ends for verdict in end.verdicts}


@dataclass(frozen=True, slots=True)
class Culprit:
    """A rewrite with which something breaks that holds without it. `before` and `after` are the
    compilations without and with it.
    """

    number: int
    event: Applied
    before: BisectRun
    after: BisectRun


def bisect(run: Run) -> Culprit | None:
    """Halves the number of rewrites until one is left; None where nothing breaks.

    The engine is deterministic, so the first n rewrites are the same in every run. Takes about 2
    log2(n) compilations. Where errors cancel, it is not the only such rewrite. Errors other than a
    broken promise are raised.
    """
    whole = _attempt(run, None, None)
    if not whole.broken:
        return None
    sites = [(event.rule, event.site) for event in whole.journal.of(Applied)]
    held, breaks, tried = 0, 1, _attempt(run, 1, sites)
    good = _attempt(run, 0, sites)
    while not tried.broken:
        held, breaks, good = breaks, 2 * breaks, tried
        tried = _attempt(run, breaks, sites)
    while breaks - held > 1:
        middle = (held + breaks) // 2
        found = _attempt(run, middle, sites)
        if found.broken:
            breaks, tried = middle, found
        else:
            held, good = middle, found
    return Culprit(breaks, tried.journal.of(Applied)[breaks - 1], good, tried)


def _attempt(run: Run, fuel: int | None, sites: Sites | None) -> BisectRun:
    journal = Journal()
    try:
        compiled = run(fuel, journal, sites)
    except LissomError as error:
        first = error.diagnostics[0]
        if first.code != BREAKS:
            raise
        return BisectRun(journal, "; ".join((first.message, *first.notes)))
    ends = [end.reason for end in journal.of(StageEnd) if not end.kept]
    claims = [f"`{v.claim}` does not hold: {v.detail}" for v in compiled.verdicts if not v.holds]
    return BisectRun(journal, next(iter([*ends, *claims]), ""))
