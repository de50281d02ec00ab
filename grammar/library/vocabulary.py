"""Which ops and extern functions exist: an index over vocabulary text, parsed only where asked for.

Statements of a vocabulary file start in column 0, so their names, and the torch names that an op
goes by, are found by looking at the beginnings of lines. Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..diagnostics import Label, LissomError, Source, Span, fail
from ..text.parse import parse_part
from ..tree import tree as t

_START = re.compile(
    r"^(op|extern[ \t]+fn|use|exact|approx|lossless|observe|pipeline|test)\b[ \t]*(\w*)", re.M
)
_FUNCTION = re.compile(r"(?:^|[;{])[ \t]*(?:meaning|spelling)[ \t]+(\w+(?:\.\w+)*)", re.M)


class _Statement(NamedTuple):
    """Where a statement stands in its source, and the name in it."""

    source: Source
    start: int
    end: int
    name: tuple[int, int]

    @property
    def label(self) -> Label:
        return Label(Span(self.source, *self.name), "declared here")

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def parse(self) -> t.Op | t.Extern:
        return _parsed(self.source, self.start, self.end)


@cache
def _parsed(source: Source, start: int, end: int) -> t.Op | t.Extern:
    """The declaration at this place; one of the library is parsed once in a process."""
    found = parse_part(source, start, end).statements
    return next(s for s in found if isinstance(s, (t.Op, t.Extern)))


class Declarations:
    """The ops and extern functions of vocabulary texts and of files that are parsed already.

    Raises N003 if a name is declared twice. A syntax error inside a statement is raised when that
    statement is first asked for.
    """

    def __init__(self, sources: Iterable[Source], extra: Iterable[t.File] = ()) -> None:
        self._pending: dict[tuple[str, str], _Statement] = {}
        self._parsed: dict[tuple[str, str], t.Op | t.Extern] = {}
        for source in sources:
            for kind, statement in _scan(source):
                self._declare(kind, statement)
        for file in extra:
            self._adopt(file)

    def op(self, name: str) -> t.Op | None:
        found = self._find("op", name)
        return found if isinstance(found, t.Op) else None

    def extern(self, name: str) -> t.Extern | None:
        found = self._find("extern", name)
        return found if isinstance(found, t.Extern) else None

    def names(self) -> tuple[str, ...]:
        """The names of all ops, in order of declaration."""
        return self._names("op")

    def extern_names(self) -> tuple[str, ...]:
        """The names of all extern functions, in order of declaration."""
        return self._names("extern")

    def spellings(self) -> dict[str, tuple[str, ...]]:
        """For each torch name such as `torch.relu`, the ops that list it, in textual order."""
        found: dict[str, dict[str, None]] = {}
        for name in self.names():
            for dotted in self._functions(name):
                found.setdefault(dotted, {})[name] = None
        return {dotted: tuple(names) for dotted, names in found.items()}

    def _names(self, wanted: str) -> tuple[str, ...]:
        return tuple(name for kind, name in {**self._pending, **self._parsed} if kind == wanted)

    def _functions(self, name: str) -> Iterable[str]:
        statement = self._pending.get(("op", name))
        if statement is not None:
            return _FUNCTION.findall(statement.text)
        op = self._parsed["op", name]
        assert isinstance(op, t.Op)
        return [s.signature.dotted for s in op.items if isinstance(s, (t.OpMeaning, t.OpSpelling))]

    def _find(self, kind: str, name: str) -> t.Op | t.Extern | None:
        found = self._parsed.get((kind, name))
        statement = self._pending.get((kind, name))
        if found is None and statement is not None:
            found = self._parsed[kind, name] = statement.parse()
        return found

    def _declare(self, kind: str, statement: _Statement) -> None:
        name = statement.source.text[slice(*statement.name)]
        first = self._pending.setdefault((kind, name), statement)
        if first is not statement:
            raise _twice(kind, name, statement.label, first.label)

    def _adopt(self, file: t.File) -> None:
        for statement in file.statements:
            if not isinstance(statement, (t.Op, t.Extern)):
                continue
            kind = "op" if isinstance(statement, t.Op) else "extern"
            name = statement.name.text
            first = self._place(kind, name)
            if first is not None and self._find(kind, name) == statement:
                continue  # in the same words, as in a copy of a library file
            if first is not None:
                raise _twice(kind, name, Label(statement.name.span, "declared again"), first)
            self._parsed[kind, name] = statement

    def _place(self, kind: str, name: str) -> Label | None:
        if (kind, name) in self._pending:
            return self._pending[kind, name].label
        parsed = self._parsed.get((kind, name))
        return None if parsed is None else Label(parsed.name.span, "declared here")


def _scan(source: Source) -> Iterator[tuple[str, _Statement]]:
    starts = list(_START.finditer(source.text))
    ends = [start.start() for start in starts[1:]] + [len(source.text)]
    for start, end in zip(starts, ends, strict=True):
        kind = start[1].split()[0]
        if kind in ("op", "extern"):
            yield kind, _Statement(source, start.start(), end, start.span(2))


def _twice(kind: str, name: str, *places: Label) -> LissomError:
    word = "op" if kind == "op" else "extern function"
    return fail(
        "N003", f"the {word} `{name}` is declared twice", *places, help="rename one of them"
    )


@cache
def library_sources() -> tuple[Source, ...]:
    """The vocabulary and rule texts that lissom ships, in alphabetical order."""
    folder = Path(__file__).parents[2] / "passes"
    files = sorted(folder.glob("*.lissom"))
    return tuple(Source(f"passes/{f.name}", f.read_text("utf-8")) for f in files)


@cache
def library() -> Declarations:
    """The declarations of the library alone."""
    return Declarations(library_sources())
