"""What has a name in rule files, from the declarations themselves: ops, functions, words, rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..grammar.library.program import RuleLibrary
from ..grammar.library.vocabulary import library, library_sources
from ..grammar.tree import tree as t
from ..grammar.words import words
from .page_text import code_block, comment_above, prose


@dataclass(frozen=True, slots=True)
class ReferenceEntry:
    """kind: op, function, word, or the kind of a rule. place: file and line, "" for a word. about:
    what the comment or `doc` says. text: the declaration.
    """

    kind: str
    name: str
    place: str
    about: str
    text: str


def entries(name: str) -> list[ReferenceEntry]:
    """Everything that is called `name`: `reshape` is an op and a function."""
    return [entry for entry in (_op(name), _function(name), _word(name), _rule(name)) if entry]


def reference_names() -> list[str]:
    """All names there are, ops first."""
    known = library()
    return [*known.names(), *known.extern_names(), *words(), *RuleLibrary(library_sources()).names]


def _op(name: str) -> ReferenceEntry | None:
    found = library().op(name)
    return None if found is None else _declared("op", name, found)


def _function(name: str) -> ReferenceEntry | None:
    found = library().extern(name)
    return None if found is None else _declared("function", name, found)


def _declared(kind: str, name: str, found: t.Op | t.Extern) -> ReferenceEntry:
    span = found.span
    about = " ".join(comment_above(span.source.text, span.start))
    return ReferenceEntry(kind, name, str(span), about, span.text)


def _word(name: str) -> ReferenceEntry | None:
    return ReferenceEntry("word", name, "", "", words()[name]) if name in words() else None


def _rule(name: str) -> ReferenceEntry | None:
    rule = RuleLibrary(library_sources()).get(name)
    if rule is None:
        return None
    doc = rule.one(t.Doc)
    return ReferenceEntry(
        f"{rule.kind} rule", name, str(rule.span), doc.text if doc else "", rule.span.text
    )


# -- one page --------------------------------------------------------------------------------------


def page() -> str:
    """Ops, functions and words as Markdown, file by file; the pages of rules are made elsewhere."""
    parts = [
        "# Reference",
        "Written by `lissom explain --markdown` from the declarations in `passes/` and from "
        "`grammar/words.md`; `lissom explain NAME` prints one entry. Rules: "
        "[rules/](rules/README.md).",
        "## Words",
        *(f"### {name}\n\n{text}" for name, text in words().items()),
    ]
    for title, kind, all_names in (
        ("Ops", "op", library().names()),
        ("Functions", "function", library().extern_names()),
    ):
        parts += [f"## {title}", *_blocks(kind, all_names)]
    return "\n\n".join(parts) + "\n"


def _blocks(kind: str, all_names: tuple[str, ...]) -> Iterator[str]:
    """The declarations of each file under its name, comments and all."""
    file = ""
    for name in all_names:
        entry = next(entry for entry in entries(name) if entry.kind == kind)
        path = entry.place.rpartition(":")[0].rpartition(":")[0] or entry.place
        if path != file:
            file = path
            yield f"### {file}"
        about = f"{prose(entry.about)}\n\n" if entry.about else ""
        yield f"#### {name}\n\n{about}{code_block(entry.text, 'lissom')}"
