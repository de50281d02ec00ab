"""Pages about rules, made of their text and of the evidence for it: Markdown, one page for each
file, and an index.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from ..grammar.checks.declared import SymbolTable
from ..grammar.diagnostics import Label, LissomError, fail
from ..grammar.fmt.expr import expression
from ..grammar.library.program import Program
from ..grammar.tree import clauses
from ..grammar.tree import tree as t
from .evidence import Evidence, RuleEvidence, digest
from .page_text import (
    code,
    code_block,
    comment_above,
    comment_markdown,
    first_sentence,
    header_comment,
    prose,
    reason,
    table,
)
from .rule_evidence import FROM_TEXT, NOT_TESTED, SHOWN, WIRED, evidence_table, verdict
from .rule_picture import picture

INDEX = "README.md"
WORDS = {"same bits": "bits", "same values": "values", "up to rounding": "rounding"}
"""How the `doc` of an exact rule says how exact it is."""

LEGEND = (
    ("bits", "the output is the same to the last bit, nan and infinities included"),
    ("values", "equal values; a zero may change its sign"),
    ("rounding", "the same function; weights are computed in float64 and rounded once"),
    ("exact", "the same function; the rule's `doc` says no more"),
    (
        "budget",
        "the weights change (`perturb`), and what that changes is measured against a budget; the "
        "rewrite that follows is exact up to rounding for the changed weights",
    ),
)
GENERATED = "Written by `lissom pages` from {source} and the certificate of its test."


@dataclass(frozen=True)
class Section:
    """One rule and what is known of it."""

    rule: t.Rule
    known: SymbolTable
    entry: RuleEvidence | None

    @property
    def name(self) -> str:
        return self.rule.name.text

    @property
    def doc(self) -> str:
        found = self.rule.one(t.Doc)
        return prose(found.text) if found is not None else ""

    @property
    def exactness(self) -> str:
        """One of the words of `LEGEND`, or the kind of a rule that has none."""
        if next(clauses.moves(self.rule), None) is not None:
            return "budget"
        said = next((word for text, word in WORDS.items() if text in self.doc.lower()), "exact")
        return said if self.rule.kind == "exact" else self.rule.kind


@dataclass(frozen=True)
class RulePage:
    """One rule file. `source`: its path, seen from the page."""

    path: Path
    source: str
    header: Sequence[str]
    sections: tuple[Section, ...]

    @cached_property
    def file(self) -> str:
        return f"{self.path.stem}.md"


def pages_of(programs: Mapping[Path, Program], evidence: Evidence, out: Path) -> list[RulePage]:
    """A page for each rule file that has rules, to stand in `out`. Raises V113 for all rules whose
    evidence is about another text.
    """
    rules = [rule for program in programs.values() for rule in program.file.all(t.Rule)]
    stale = [found for rule in rules if (found := evidence.stale(rule)) is not None]
    if stale:
        raise LissomError(*stale)
    return [
        _page(path, program, evidence, out)
        for path, program in programs.items()
        if program.file.all(t.Rule)
    ]


def _page(path: Path, program: Program, evidence: Evidence, out: Path) -> RulePage:
    known = SymbolTable(program.file, program.declarations)
    rules = program.file.all(t.Rule)
    source = Path(os.path.relpath(path, out)).as_posix()
    start = program.file.statements[0].span.start
    sections = tuple(Section(rule, known, evidence.of(rule)) for rule in rules)
    return RulePage(path, source, header_comment(program.text, start), sections)


def documents(pages: Sequence[RulePage], evidence: Evidence) -> dict[str, str]:
    """File name -> Markdown. Raises U005 where two files ask for one page."""
    by_name: dict[str, RulePage] = {}
    for page in pages:
        if page.file == INDEX or page.file in by_name:
            taken = by_name[page.file].path if page.file in by_name else "the index"
            message = f"`{page.path}` and {taken} ask for the same page, {page.file}"
            place = Label(None, where=str(page.path))
            raise fail("U005", message, place, help="write them into folders of their own")
        by_name[page.file] = page
    found = {page.file: page_text(page) for page in pages}
    return {INDEX: index_text(pages, evidence)} | found


# -- a page ----------------------------------------------------------------------------------------


def page_text(page: RulePage) -> str:
    """The whole page of one rule file."""
    link = f"[{prose(page.path.name)}]({quote(page.source)})"
    parts = [
        f"# {prose(page.path.stem)}",
        f"*{GENERATED.format(source=link)} [All rules]({INDEX}).*",
        comment_markdown(page.header),
        *(part for section in page.sections for part in _section(section)),
    ]
    return _joined(parts)


def _section(section: Section) -> Iterator[str]:
    rule = section.rule
    yield f"## {section.name}"
    yield section.doc
    yield comment_markdown(comment_above(rule.span.source.text, rule.span.start))
    yield f"*{_kind(section)}, {verdict(section.entry)}.*"
    yield "\n\n".join(_measured(rule))
    drawn = picture(rule, section.known)
    yield code_block(drawn, "mermaid") if drawn else ""
    conditions = list(_conditions(rule))
    yield table(("applies where", "otherwise"), conditions) if conditions else ""
    yield _evidence(section)
    yield code_block(rule.span.text, "lissom")


def _kind(section: Section) -> str:
    kind, exactness = section.rule.kind, section.exactness
    return f"{kind} rule" if exactness == kind else f"{kind} rule ({exactness})"


def _measured(rule: t.Rule) -> Iterator[str]:
    """What an approximate rule moves, and what holds afterwards."""
    moved = [_spelled(move) for move in clauses.moves(rule)]
    if moved:
        yield f"Moves {', '.join(moved)}."
    claims = list(clauses.claims(rule))
    if claims:
        used = {name.text for claim in claims for name in clauses.names_in(claim)}
        given = [p for p in rule.params if p.name.text in used and p.default is not None]
        tail = "".join(f"; {code(p.name.text)} is {_default(p)} unless given" for p in given)
        yield f"Ensures {' and '.join(map(_spelled, claims))}{tail}."


def _default(param: t.Param) -> str:
    return code(expression(param.default).flat) if param.default is not None else ""


def _spelled(node: t.Node) -> str:
    return code(node.span.text)


def _conditions(rule: t.Rule) -> Iterator[tuple[str, str]]:
    """Shapes, what must not stand around the site, and guards, in the order in which they are
    asked.
    """
    for pattern in clauses.patterns(rule):
        if not isinstance(pattern, t.OpPattern):
            yield code(pattern.span.text), "no match"
    for unless in rule.all(t.Unless):
        yield f"not {code('; '.join(p.span.text for p in unless.patterns))}", "no match"
    for guard in (guard for where in rule.all(t.Where) for guard in where.guards):
        if isinstance(guard, t.Hole):
            yield code("?"), "still open: a condition is missing here"
        else:
            yield code(expression(guard.condition).flat), reason(guard.reason or "refused")


def _evidence(section: Section) -> str:
    shown = digest(section.rule)[:SHOWN]
    if section.entry is None:
        return f"No evidence: this rule was {NOT_TESTED}. SHA-256 of its text: `{shown}`."
    drawn = FROM_TEXT if clauses.over_ops(section.rule) else WIRED
    return evidence_table(section.entry, shown, drawn)


# -- the index -------------------------------------------------------------------------------------


def index_text(pages: Sequence[RulePage], evidence: Evidence) -> str:
    """All rules in one table for each file, what the words mean, and where the numbers are from."""
    sections = list(chain.from_iterable(page.sections for page in pages))
    used = {section.exactness for section in sections}
    legend = [(f"*{word}*", meaning) for word, meaning in LEGEND if word in used]
    parts = [
        "# Rules",
        f"*{GENERATED.format(source='each rule file')}*",
        _totals(sections),
        table(("how exact", "meaning"), legend) if legend else "",
        "A rule never applies where a value that would disappear is read elsewhere, unless the "
        "rule matches it as `shared`; nor where an op that writes in place would see the rewrite.",
        *(part for page in pages for part in _index_part(page)),
        "## Where the numbers are from",
        _origin(evidence),
    ]
    return _joined(parts)


def _index_part(page: RulePage) -> Iterator[str]:
    yield f"## [{prose(page.path.stem)}]({quote(page.file)})"
    yield first_sentence(page.header)
    yield table(("rule", "what", "exact", "verdict"), [_row(page, s) for s in page.sections])


def _row(page: RulePage, section: Section) -> tuple[str, ...]:
    link = f"[`{section.name}`]({quote(page.file)}#{section.name})"
    return link, section.doc, f"*{section.exactness}*", verdict(section.entry)


def _totals(sections: Sequence[Section]) -> str:
    entries = [section.entry for section in sections if section.entry is not None]
    verdicts = [verdict(section.entry) for section in sections]
    counted = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    models, fired, mutants, killed = (
        int(sum(entry.number(name) or 0 for entry in entries))
        for name in ("models", "fired", "mutants", "killed")
    )
    return (
        f"{len(sections)} rules: {counted}. {models:,} generated models, {fired:,} rewrites on "
        f"them, {killed:,} of {mutants:,} planted mistakes noticed."
    )


def _origin(evidence: Evidence) -> str:
    """Versions, seed, and what the certificate itself says that its numbers mean."""
    document = evidence.document
    names: Mapping[str, object] = document.part("environment").fields
    versions = ", ".join(f"{prose(str(k))} {prose(str(v))}" for k, v in sorted(names.items()))
    seed = document.number("seed")
    where = [versions] if versions else []
    where += [f"seed {seed}"] if seed is not None else []
    made = (
        "`lissom test FILES --certificate FILE` tries each rule on models that it generates from "
        "the rule's own text; `lissom pages FILES --certificate FILE --out FOLDER` writes these "
        f"pages. {'Here: ' + ', '.join(where) + '.' if where else ''}"
    )
    return _joined([made, prose(document.text("claims"))]).rstrip()


def _joined(parts: Sequence[str]) -> str:
    kept = (part.strip("\n ") for part in parts)
    return "\n\n".join(part for part in kept if part) + "\n"
