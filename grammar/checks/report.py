"""Where the passes of the checker put what they find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..diagnostics import Diagnostic, Label, Severity, did_you_mean


@dataclass(slots=True)
class Messages:
    """Diagnostics in the order of discovery; the same thing is said once."""

    found: dict[Diagnostic, None] = field(default_factory=dict)

    def error(
        self, code: str, message: str, *labels: Label, note: str = "", help: str = ""
    ) -> None:
        self._add(code, message, labels, (note,), (help,), "error")

    def warn(self, code: str, message: str, *labels: Label, note: str = "", help: str = "") -> None:
        self._add(code, message, labels, (note,), (help,), "warning")

    def unknown(
        self, code: str, message: str, label: Label, name: str, known: Iterable[str]
    ) -> None:
        """An error about a name, with the known name that it most likely stands for."""
        guess = did_you_mean(name, set(known) - {name})
        self._add(code, message, (label,), (), guess, "error")

    @property
    def errors(self) -> int:
        return sum(d.severity == "error" for d in self.found)

    def _add(
        self,
        code: str,
        message: str,
        labels: tuple[Label, ...],
        notes: tuple[str, ...],
        helps: tuple[str, ...],
        severity: Severity,
    ) -> None:
        notes, helps = tuple(filter(None, notes)), tuple(filter(None, helps))
        self.found[Diagnostic(code, message, labels, notes, helps, severity)] = None
