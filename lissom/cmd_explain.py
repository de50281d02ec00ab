"""`lissom explain`: the page of a code, or of a rule of the library."""

from __future__ import annotations

import re
from dataclasses import asdict

import click

from .grammar import codes
from .grammar.diagnostics import did_you_mean, fail
from .grammar.program import Shelf
from .grammar.tree import Doc, Rule
from .grammar.vocabulary import library_sources
from .output import Output, command

_CODE = re.compile(r"[A-Za-z]\d{3}")


@command()
@click.argument("subject", metavar="CODE|RULE", required=False)
def explain(out: Output, subject: str | None) -> None:
    """Say what a CODE means and how to fix it, or what a RULE of the library does.

    Without an argument: lists both. Needs no torch.
    """
    shelf = Shelf(library_sources())
    if subject is None:
        _list(out, shelf)
    elif _CODE.fullmatch(subject):
        _code(out, subject)
    else:
        _rule(out, shelf, subject)


def _code(out: Output, code: str) -> None:
    page = codes.explain(code)
    out.say(page)
    out.fields |= asdict(codes.codes()[code.upper()])


def _rule(out: Output, shelf: Shelf, name: str) -> None:
    rule = shelf.get(name)
    if rule is None:
        known = [*shelf.names, *codes.codes()]
        hint = next(iter(did_you_mean(name, known)), "lissom explain lists all codes and rules")
        raise fail("N001", f"there is no code and no library rule `{name}`", help=hint)
    span = rule.span
    out.say(f"{rule.kind} rule {name}  ({span})")
    for doc in rule.all(Doc):
        out.say(f"\n{doc.text}")
    out.say(f"\n{span.text}")
    out.fields |= {"rule": name, "kind": rule.kind, "doc": _doc(rule), "text": span.text}


def _doc(rule: Rule) -> str:
    doc = rule.one(Doc)
    return doc.text if doc is not None else ""


def _list(out: Output, shelf: Shelf) -> None:
    rules = [rule for name in shelf.names if (rule := shelf.get(name)) is not None]
    out.table([(rule.name.text, rule.kind, _doc(rule)) for rule in rules])
    out.say()
    out.table([(info.code, info.title) for info in codes.codes().values()])
    out.fields |= {
        "rules": {rule.name.text: _doc(rule) for rule in rules},
        "codes": {info.code: info.title for info in codes.codes().values()},
    }
