"""The one diagnostics type of lissom, and how it is drawn.

A diagnostic is a value: code, severity, message, labelled places, notes and helps. The checker, the capture, the
matcher, the verifier and the artifact reader all speak it; text and JSON are two renderings of the same object.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Source:
    """A text and the name it is shown under. Positions elsewhere are offsets into `text`."""

    name: str
    text: str = field(repr=False)

    def line_of(self, offset: int) -> int:
        """1-based line that holds `offset`."""
        return self.text.count("\n", 0, offset) + 1

    def column_of(self, offset: int) -> int:
        """1-based column of `offset` in its line."""
        return offset - (self.text.rfind("\n", 0, offset) + 1) + 1

    def line(self, number: int) -> str:
        lines = self.text.split("\n")
        return lines[number - 1] if 0 < number <= len(lines) else ""


SOURCE: ContextVar[Source] = ContextVar("source")
"""The text that is being parsed: the lexer and the tree builder take their spans from it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of characters `[start, end)` in a source."""

    source: Source = field(repr=False)
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.line_of(self.start)

    @property
    def column(self) -> int:
        return self.source.column_of(self.start)

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Label:
    """A place in a rule file, or (`where`) a place in the model such as `layer1.0.conv1 (net.py:17)`."""

    span: Span | None
    text: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What is wrong (message), where (labels, the first is the primary one), why (notes), and the fix (helps)."""

    code: str
    message: str
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    severity: Severity = "error"

    def __str__(self) -> str:
        return render(self)

    def as_json(self) -> dict[str, object]:
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "labels": [_label_json(label) for label in self.labels],
            "notes": list(self.notes),
            "helps": list(self.helps),
        }


class LissomError(Exception):
    """Raised where work cannot go on. Carries the diagnostics that say why; its text is their rendering."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)
        self.diagnostics = diagnostics

    def __str__(self) -> str:
        return "\n\n".join(render(d) for d in self.diagnostics)


def fail(code: str, message: str, *labels: Label, note: str = "", help: str = "") -> LissomError:
    """A `LissomError` with one diagnostic, for `raise fail(...)`."""
    return LissomError(
        Diagnostic(code, message, labels, (note,) if note else (), (help,) if help else ())
    )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely stands for, or None."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> tuple[str, ...]:
    guess = nearest(name, known)
    return (f"did you mean `{guess}`?",) if guess else ()


# -- drawing ------------------------------------------------------------------------------------------------------


def render(diagnostic: Diagnostic) -> str:
    """The frame people read: header, place, source lines with carets, notes and helps. Plain text, printable only."""
    spans = [label for label in diagnostic.labels if label.span is not None]
    width = max((len(str(label.span.line)) for label in spans if label.span), default=1) + 1
    lines = [f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}"]
    lines += _frames(spans, width)
    lines += [
        f"{' ' * width}--> {label.where}{_tail(label.text)}"
        for label in diagnostic.labels
        if label.where
    ]
    lines += [f"{' ' * width} = note: {note}" for note in diagnostic.notes]
    lines += [f"{' ' * width} = help: {text}" for text in diagnostic.helps]
    return "\n".join(printable(line) for line in lines)


def printable(text: str) -> str:
    """Escape what a terminal would act on: control characters, lone surrogates, bidirectional marks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _tail(text: str) -> str:
    return f": {text}" if text else ""


def _frames(labels: Sequence[Label], width: int) -> list[str]:
    if not labels:
        return []
    lines: list[str] = []
    shown = None
    for source in dict.fromkeys(label.span.source for label in labels if label.span):
        here = [label for label in labels if label.span and label.span.source is source]
        first = here[0].span
        arrow = "-->" if shown is None else ":::"
        lines += [f"{' ' * (width - 1)}{arrow} {first}", f"{' ' * width}|"]
        primary = labels[0]
        for label in sorted(here, key=lambda label: label.span.start if label.span else 0):
            lines += _frame(label, width, "^" if label is primary else "-")
        shown = source
    return lines


def _frame(label: Label, width: int, mark: str) -> list[str]:
    span = label.span
    assert span is not None
    line = span.source.line(span.line)
    code, lead = _window(printable(line), span.column - 1)
    length = max(1, min(span.end - span.start, len(line) - (span.column - 1)))
    underline = f"{' ' * lead}{mark * min(length, 80)} {label.text}".rstrip()
    return [f"{str(span.line).rjust(width - 1)} | {code}", f"{' ' * width}| {underline}"]


def _window(line: str, column: int) -> tuple[str, int]:
    """At most 120 characters of a line around a column, and where the column is in them."""
    if len(line) <= 120:
        return line, column
    start = max(0, column - 40)
    return line[start : start + 120], column - start


def _label_json(label: Label) -> dict[str, object]:
    out: dict[str, object] = {"text": label.text}
    if label.where:
        out["where"] = label.where
    if label.span is not None:
        span = label.span
        out |= {
            "file": span.source.name,
            "line": span.line,
            "column": span.column,
            "start": span.start,
            "end": span.end,
        }
    return out
