"""Making the choices that show a mistake few and small.

Hypothesis would do this, and draws models for property tests (see strategies.py). Evidence has to
be the same wherever it is gathered, though, and what Hypothesis draws from a seed depends on the
constants in whatever modules are loaded.
"""

from __future__ import annotations

from collections.abc import Callable

Tape = tuple[int, ...]

TRIALS = 150
"""Tapes that are tried at most."""


def shrunk(tape: Tape, fails: Callable[[Tape], Tape | None], trials: int = TRIALS) -> Tape:
    """A tape no longer and no larger that fails too: delta debugging (Zeller and Hildebrandt 2002)
    on the choices. `fails` gives the tape that was really used, or None where nothing fails.
    """
    search = _Search(tape, fails, trials)
    width = len(tape)
    while width > 0:
        search.lower_runs(width)
        width //= 2
    search.lower_numbers()
    return search.tape


class _Search:
    """The smallest failing tape so far, and how many more may be tried."""

    def __init__(self, tape: Tape, fails: Callable[[Tape], Tape | None], trials: int) -> None:
        self.tape, self.fails, self.left = tape, fails, trials

    def lower_runs(self, width: int) -> None:
        """Zeros, the lowest choice of all, in the place of each run of this width."""
        for start in range(0, len(self.tape), width):
            run = self.tape[start : start + width]
            if any(run):
                self.offer((*self.tape[:start], *(0,) * len(run), *self.tape[start + width :]))

    def lower_numbers(self) -> None:
        for index in range(len(self.tape)):
            number = self.tape[index] if index < len(self.tape) else 0
            for less in (number // 2, number - 1):
                if 0 < less < number and self.offer(
                    (*self.tape[:index], less, *self.tape[index + 1 :])
                ):
                    break

    def offer(self, tape: Tape) -> bool:
        """Takes a tape over if it fails and is smaller in truth."""
        if self.left == 0:
            return False
        self.left -= 1
        found = self.fails(tape)
        if found is None or (len(found), sum(found)) >= (len(self.tape), sum(self.tape)):
            return False
        self.tape = found
        return True
