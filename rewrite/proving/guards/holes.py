"""A rule with a hole, `where { ? }`: without it, up to it, and with a guard in it."""

from __future__ import annotations

from dataclasses import replace

from ....grammar.checks.check import check
from ....grammar.text.parse import parse
from ....grammar.tree import tree as t
from ....grammar.tree.clauses import guard_holes
from ..subject import Subject


def opened(rule: t.Rule) -> t.Rule:
    """The rule with its holes taken as true."""
    return t.replace(rule, clauses=tuple(map(_closed, rule.clauses)))


def _closed(clause: t.Node) -> t.Node:
    if not isinstance(clause, t.Where):
        return clause
    return t.replace(clause, guards=tuple(g for g in clause.guards if isinstance(g, t.Guard)))


def before(rule: t.Rule, hole: t.Hole) -> t.Rule:
    """The rule as far as it is asked before the hole: no later guard, no later `let`."""
    asked = (t.Where, t.Let)
    early = [c for c in rule.clauses if not isinstance(c, asked) or c.span.start < hole.span.start]
    return t.replace(rule, clauses=tuple(_until(clause, hole) for clause in early))


def _until(clause: t.Node, hole: t.Hole) -> t.Node:
    if not isinstance(clause, t.Where):
        return clause
    early = (g for g in clause.guards if g.span.start < hole.span.start)
    return t.replace(clause, guards=tuple(g for g in early if isinstance(g, t.Guard)))


def filled(rule: t.Rule, guard: str) -> str:
    """The text of the rule's file with the guard in its first hole; further holes are closed."""
    text = rule.span.source.text
    for number, hole in reversed(list(enumerate(guard_holes(rule)))):
        text = text[: hole.span.start] + ("" if number else guard) + text[hole.span.end :]
    return text


def with_guard(subject: Subject, guard: str) -> Subject:
    """The rule, read again with the guard in its hole."""
    source = subject.source
    file = parse(filled(source, guard), source.span.source.name)
    found = next(rule for rule in file.all(t.Rule) if rule.name.text == source.name.text)
    return replace(subject, source=found)


def at_fault(subject: Subject, guard: str) -> bool:
    """Whether the static checker finds an error in a guard itself, where it stands."""
    source = with_guard(subject, guard).source
    file = t.File((source,), span=source.span)
    start = guard_holes(subject.source)[0].span.start
    errors = (
        d
        for d in check(file, subject.vocabulary.declarations)
        if d.severity == "error" and d.labels
    )
    spans = (diagnostic.labels[0].span for diagnostic in errors)
    return any(span is not None and start <= span.start < start + len(guard) for span in spans)
