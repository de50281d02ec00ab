"""What each training of a run came to, in a line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..journal import Epoch, Journal, Trained


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One training: how many epochs it ran, which is kept, the metrics at its beginning and there,
    and whether its weights are in the result. before, after: validation metrics by name.
    """

    name: str
    epochs: int
    best: int
    before: dict[str, float]
    after: dict[str, float]
    kept: bool
    seconds: float

    def __str__(self) -> str:
        moved = ", ".join(f"{k} {self.before[k]:.4g} -> {v:.4g}" for k, v in self.after.items())
        said = "" if self.kept else "; not in the result"
        moved = moved or "nothing measured"
        return f"{self.name}: epoch {self.best} of {self.epochs}, {moved}{said}"

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def training_rows(journal: Journal, kept: Collection[str]) -> list[TrainingRow]:
    """A row for each training, in order; `kept` names the stages that are in the result."""
    return [_row(journal, event, event.stage in kept) for event in journal.of(Trained)]


def _row(journal: Journal, event: Trained, kept: bool) -> TrainingRow:
    epochs = {e.number: e for e in journal.of(Epoch) if e.stage == event.stage}
    before, after = epochs[0].metrics, epochs[event.best].metrics
    return TrainingRow(event.stage, event.epochs, event.best, before, after, kept, event.seconds)
