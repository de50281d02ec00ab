"""`lissom explain`: the page of a code, a rule, an op, a function or a word of the language."""

from __future__ import annotations

import re
from dataclasses import asdict

import click

from ..grammar import codes
from ..grammar.diagnostics import did_you_mean, fail
from ..grammar.library.program import RuleLibrary
from ..grammar.library.vocabulary import library, library_sources
from ..grammar.tree.tree import Doc, Rule
from ..grammar.words import words
from ..output import Output, command

_CODE = re.compile(r"[A-Za-z]\d{3}")


@command()
@click.argument("subject", metavar="CODE|RULE|OP|FUNCTION|WORD", required=False)
@click.option("--markdown", is_flag=True, help="All ops, functions and words, as one page.")
def explain(out: Output, subject: str | None, markdown: bool) -> None:
    """Say what a CODE means and how to fix it, what a RULE does, how an OP or a FUNCTION is
    declared, or what a WORD of the language means.

    Without an argument: lists all of them. Needs no torch.
    """
    if markdown:
        from ..report.reference import page

        click.echo(page(), nl=False)
    elif subject is None:
        _list(out, RuleLibrary(library_sources()))
    elif _CODE.fullmatch(subject):
        _code(out, subject)
    else:
        _named(out, subject)


def _code(out: Output, code: str) -> None:
    page = codes.explain(code)
    out.say(page)
    out.fields |= asdict(codes.codes()[code.upper()])


def _named(out: Output, name: str) -> None:
    from ..report.reference import entries, reference_names

    found = entries(name)
    if not found:
        known = [*reference_names(), *codes.codes()]
        hint = next(iter(did_you_mean(name, known)), "lissom explain lists all there are")
        raise fail("N001", f"there is no code, rule, op, function or word `{name}`", help=hint)
    for entry in found:
        out.say(f"{entry.kind} {name}" + (f"  ({entry.place})" if entry.place else ""))
        if entry.about:
            out.say(f"\n{entry.about}")
        out.say(f"\n{entry.text}\n")
    first = found[-1]
    out.fields |= {
        "rule": name,
        "kind": first.kind.partition(" ")[0],
        "doc": first.about,
        "text": first.text,
        "entries": [asdict(entry) for entry in found],
    }


def _doc(rule: Rule) -> str:
    doc = rule.one(Doc)
    return doc.text if doc is not None else ""


def _list(out: Output, shelf: RuleLibrary) -> None:
    rules = [rule for name in shelf.names if (rule := shelf.get(name)) is not None]
    known = library()
    out.table([(rule.name.text, rule.kind, _doc(rule)) for rule in rules])
    for title, found in (
        ("ops", known.names()),
        ("functions", known.extern_names()),
        ("words", words()),
    ):
        out.say(f"\n{title}: {', '.join(found)}")
    out.say()
    out.table([(info.code, info.title) for info in codes.codes().values()])
    out.fields |= {
        "rules": {rule.name.text: _doc(rule) for rule in rules},
        "ops": list(known.names()),
        "functions": list(known.extern_names()),
        "words": list(words()),
        "codes": {info.code: info.title for info in codes.codes().values()},
    }
