"""A program: one rule file, the files it uses, and the library's rules, each parsed when it is
first named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from ..diagnostics import Label, Source, did_you_mean, fail
from ..text.parse import parse, parse_file, parse_part, read_text
from ..tree import tree as t
from ..tree.clauses import attached_by, reads_observers
from .vocabulary import Declarations, library_sources

_STATEMENT = re.compile(
    r"^(?:(exact|approx|lossless|observe)[ \t]+rule[ \t]+(\w+)"
    r"|(?:op|extern|use|pipeline|test)\b)",
    re.M,
)


class RuleLibrary:
    """The rules of library texts, by name; a rule is parsed when it is taken."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._slices: dict[str, tuple[Source, int, int]] = {}
        self._rules: dict[str, t.Rule] = {}
        self._observing: list[str] = []
        for source in sources:
            self._index(source)

    def _index(self, source: Source) -> None:
        starts = list(_STATEMENT.finditer(source.text))
        ends = [match.start() for match in starts[1:]] + [len(source.text)]
        for match, end in zip(starts, ends, strict=True):
            if match[2]:
                self._slices[match[2]] = (source, match.start(), end)
                self._observing += [match[2]] if match[1] == "observe" else []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._slices)

    @property
    def observing(self) -> list[t.Rule]:
        """Its observe rules."""
        return [rule for name in self._observing if (rule := self.get(name)) is not None]

    def get(self, name: str) -> t.Rule | None:
        if name in self._slices and name not in self._rules:
            source, start, end = self._slices[name]
            self._rules[name] = parse_part(source, start, end).all(t.Rule)[0]
        return self._rules.get(name)


@cache
def library_shelf() -> RuleLibrary:
    """The rules that lissom ships."""
    return RuleLibrary(library_sources())


def observers_of(rule: t.Rule, own: Iterable[t.Rule] = ()) -> list[t.Rule]:
    """The observe rules that attach what a rule reads: of `own`, else of the library."""
    for rules in (own, library_shelf().observing):
        found = [r for r in rules if r.kind == "observe" and reads_observers(rule, attached_by(r))]
        if found:
            return found
    return []


@dataclass
class Program:
    """What a rule file says, with everything it refers to at hand."""

    file: t.File
    used: tuple[t.File, ...] = ()
    shelf: RuleLibrary = field(default_factory=library_shelf)

    @property
    def text(self) -> str:
        return self.file.span.source.text

    @property
    def files(self) -> tuple[t.File, ...]:
        return (*self.used, self.file)

    @cached_property
    def declarations(self) -> Declarations:
        """Every op and extern function that the program may name. Raises N003 where one is declared
        twice.
        """
        return Declarations(library_sources(), self.files)

    @property
    def own_rules(self) -> dict[str, t.Rule]:
        """Rules of this file and of those it uses; the file's own come last and win."""
        return {rule.name.text: rule for file in self.files for rule in file.all(t.Rule)}

    @cached_property
    def attached(self) -> frozenset[str]:
        """The names under which observers hang that its rules attach, or those of the library that
        it names.
        """
        refs = {node.rule.text: node.rule for node in t.walk(self.file) if isinstance(node, t.Ref)}
        named = (self.rule(word) for word in refs.values())
        return frozenset(n for r in (*self.own_rules.values(), *named) for n in attached_by(r))

    def rule(self, word: t.Word) -> t.Rule:
        """The rule of a name: own, used or from the library. Raises N001."""
        found = self.own_rules.get(word.text) or self.shelf.get(word.text)
        if found is None:
            known = [*self.own_rules, *self.shelf.names]
            hint = next(
                iter(did_you_mean(word.text, known)),
                "rules are declared with `exact rule NAME { ... }`",
            )
            raise fail("N001", f"no rule is called `{word}`", Label(word.span), help=hint)
        return found

    def pipeline(self, name: str | None = None) -> t.Pipeline | None:
        """The pipeline of that name, or the only one; None where the file has none."""
        pipelines = self.file.all(t.Pipeline)
        if name is None:
            return self._only(pipelines)
        found = next((p for p in pipelines if p.name.text == name), None)
        if found is None:
            known = ", ".join(p.name.text for p in pipelines) or "none"
            raise fail(
                "N001",
                f"no pipeline is called `{name}`",
                Label(self.file.span),
                help=f"known: {known}",
            )
        return found

    def _only(self, pipelines: tuple[t.Pipeline, ...]) -> t.Pipeline | None:
        if len(pipelines) > 1:
            places = [Label(p.name.span, "one of them") for p in pipelines]
            raise fail(
                "N001",
                "the file has several pipelines",
                *places,
                help="say which with --pipeline NAME",
            )
        return pipelines[0] if pipelines else None


def load_program(path: Path) -> Program:
    """Reads a rule file and the files it uses, which lie beside it: `use mylab.ops` is
    mylab/ops.lissom.
    """
    return _load(parse_file(path), path.parent)


def program_of(text: str, name: str = "<text>", folder: Path | None = None) -> Program:
    """A program from text; `use` is looked up in `folder`."""
    return _load(parse(text, name), folder)


def _load(file: t.File, folder: Path | None) -> Program:
    used: dict[Path, t.File] = {}
    for use in file.all(t.Use):
        _use(use, folder, used, ())
    return Program(file, tuple(used.values()))


def _use(
    use: t.Use, folder: Path | None, used: dict[Path, t.File], trail: tuple[Path, ...]
) -> None:
    """Loads one used file and, first, what it uses itself. Words are identifiers, so no path can
    leave the folder.
    """
    name = ".".join(word.text for word in use.path)
    path = (
        None
        if folder is None
        else folder.joinpath(*(word.text for word in use.path)).with_suffix(".lissom")
    )
    if path is None or not path.is_file():
        where = str(path) if path is not None else "a folder, which text alone does not have"
        raise fail(
            "N007", f"`use {name}` finds no file", Label(use.span), note=f"looked for {where}"
        )
    assert folder is not None
    resolved = path.resolve()
    if folder.resolve() not in resolved.parents:
        raise fail(
            "N007",
            f"`use {name}` leads outside its folder",
            Label(use.span),
            note=f"it is {resolved}",
        )
    if resolved in trail:
        raise fail(
            "N007",
            f"`use {name}` is a circle",
            Label(use.span),
            help="remove one of the `use` lines",
        )
    if resolved in used:
        return
    file = parse(read_text(path), str(path))
    for inner in file.all(t.Use):
        _use(inner, folder, used, (*trail, resolved))
    used[resolved] = file
