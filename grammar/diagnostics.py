"""The one diagnostics type of lissom, and how it is drawn.

A diagnostic is a value: code, severity, message, labelled places, notes and helps. The checker, the
capture, the matcher, the verifier and the artifact reader all speak it; text and JSON are two
renderings of the same object.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Source:
    """A text and the name it is shown under. Positions elsewhere are offsets into `text`."""

    name: str
    text: str = field(repr=False)

    def line_of(self, offset: int) -> int:
        """1-based line that holds `offset`."""
        return bisect_right(self._starts, offset)

    def column_of(self, offset: int) -> int:
        """1-based column of `offset` in its line."""
        return offset - self.line_start(self.line_of(offset)) + 1

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(found.end() for found in re.finditer("\n", self.text))]

    def line_start(self, number: int) -> int:
        """The offset at which a 1-based line starts."""
        return self._starts[number - 1]

    def line(self, number: int) -> str:
        """The text of a 1-based line, without its line end; empty where there is no such line."""
        if not 0 < number <= len(self._starts):
            return ""
        start = self.line_start(number)
        end = self.text.find("\n", start)
        return self.text[start : len(self.text) if end < 0 else end].removesuffix("\r")


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

    @property
    def flat(self) -> str:
        """The text on one line, with single spaces."""
        return " ".join(self.text.split())

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Label:
    """A place in a rule file, or `where`: one in the model (`layer1.0.conv1 (net.py:17)`)."""

    span: Span | None
    text: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What is wrong (message), where (labels, primary first), why (notes), the fix (helps)."""

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
    """Raised where work cannot go on, with the diagnostics that say why; its text renders them."""

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
    import difflib  # here: most starts need no guess

    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> tuple[str, ...]:
    guess = nearest(name, known)
    return (f"did you mean `{guess}`?",) if guess else ()


# -- drawing -------------------------------------------------------------------------------------

FRAME = 120
"""Characters of a source line that are shown at most."""

TAB = "    "


def render(diagnostic: Diagnostic) -> str:
    """The frame people read: header, place, source lines with carets, notes, helps. Plain text."""
    spans = [label for label in diagnostic.labels if label.span is not None]
    width = max((len(str(label.span.line)) for label in spans if label.span), default=1) + 1
    margin = " " * width
    lines = [f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}"]
    lines += _frames(spans, width)
    lines += [f"{margin}--> {at.where}{_tail(at.text)}" for at in diagnostic.labels if at.where]
    lines += [line for note in diagnostic.notes for line in _remark(margin, "note", note)]
    lines += [line for text in diagnostic.helps for line in _remark(margin, "help", text)]
    return "\n".join(printable(line) for line in lines)


def printable(text: str) -> str:
    """Escape what a terminal would act on: control characters, lone surrogates, direction marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _tail(text: str) -> str:
    return f": {text}" if text else ""


def _remark(margin: str, kind: str, text: str) -> list[str]:
    """A note or a help; the further lines of a long one stand under its first."""
    first, *further = text.split("\n")
    indent = f"{margin}   {' ' * len(kind)}  "
    return [f"{margin} = {kind}: {first}", *(indent + line for line in further)]


def _frames(labels: Sequence[Label], width: int) -> list[str]:
    """The places, source by source; the source of the primary label comes first."""
    lines: list[str] = []
    for source in dict.fromkeys(label.span.source for label in labels if label.span):
        here = [label for label in labels if label.span and label.span.source == source]
        arrow = ":::" if lines else "-->"
        lines += [f"{' ' * (width - 1)}{arrow} {here[0].span}", f"{' ' * width}|"]
        for number, group in _by_line(source, here):
            rows = _frame(source, number, group, labels[0])
            lines.append(f"{str(number).rjust(width - 1)} | {rows[0]}".rstrip())
            lines += [f"{' ' * width}| {row}" for row in rows[1:]]
    return lines


def _by_line(source: Source, labels: Sequence[Label]) -> list[tuple[int, list[Label]]]:
    """Labels that can share a frame: those on one line, unless the line is too long to show."""
    lines: dict[int, list[Label]] = {}
    for label in labels:
        if label.span:
            lines.setdefault(label.span.line, []).append(label)
    groups: list[tuple[int, list[Label]]] = []
    for number, group in sorted(lines.items()):
        long = len(source.line(number)) > FRAME
        groups += [(number, [label]) for label in group] if long else [(number, group)]
    return groups


@dataclass(frozen=True, slots=True)
class _Mark:
    """Cells `[low, high)` of the shown line that are underlined with `char`."""

    low: int
    high: int
    char: str
    text: str


def _frame(source: Source, number: int, labels: Sequence[Label], primary: Label) -> list[str]:
    """One source line, the marks under it, and the texts of the marks."""
    start, line = source.line_start(number), source.line(number)
    columns = [label.span.start - start for label in labels if label.span]
    shown, left = _window(line, columns[0])
    marks = [
        _mark(label, start + left, shown, "^" if label is primary else "-") for label in labels
    ]
    marks.sort(key=lambda mark: (mark.low, mark.char == "^"))
    return ["".join(map(_shown, shown)), *_mark_rows(marks)]


def _window(line: str, column: int) -> tuple[str, int]:
    """The part of a long line around a column, and the column at which it starts."""
    if len(line) <= FRAME:
        return line, 0
    start = max(0, min(column - FRAME // 3, len(line) - FRAME))
    before, after = "…" * (start > 0), "…" * (start + FRAME < len(line))
    return before + line[start : start + FRAME] + after, start - len(before)


def _mark(label: Label, start: int, shown: str, char: str) -> _Mark:
    """A span that goes on over the next lines is underlined to the end of its first."""
    assert label.span is not None
    first = min(label.span.start - start, len(shown))
    last = max(first, min(label.span.end - start, len(shown.rstrip())))
    low, high = _cells(shown[:first]), _cells(shown[:last])
    return _Mark(low, max(high, low + 1), char, label.text)


def _mark_rows(marks: Sequence[_Mark]) -> list[str]:
    """The underline with the text of its last mark, then the texts of the others, right to left."""
    underline = [" "] * max(mark.high for mark in marks)
    for mark in sorted(marks, key=lambda mark: mark.char == "^"):
        underline[mark.low : mark.high] = mark.char * (mark.high - mark.low)
    rows = [f"{''.join(underline)} {marks[-1].text}".rstrip()]
    waiting = [mark for mark in marks[:-1] if mark.text]
    rows += [_bars(waiting)] if waiting else []
    while waiting:
        last = waiting.pop()
        bars = _bars([mark for mark in waiting if mark.low < last.low])
        rows.append(bars.ljust(last.low) + last.text)
    return rows


def _bars(marks: Sequence[_Mark]) -> str:
    columns = {mark.low for mark in marks}
    return "".join(
        "|" if column in columns else " " for column in range(max(columns, default=-1) + 1)
    )


def _shown(char: str) -> str:
    return TAB if char == "\t" else printable(char)


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes: wide characters two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    combining = sum(unicodedata.combining(char) > 0 for char in text)
    return len("".join(map(_shown, text))) + wide - combining


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
