"""Why the sides of a rule differ: the conditions that tell models at which they do from models at
which they agree.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from ...grammar.text.parse import parse
from ...grammar.tree import tree as t
from ...grammar.tree.clauses import guard_holes, patterns
from .guards.holes import opened
from .guards.propose import Sample, alike, legal
from .guards.separate import LEAST, Conjunction, SiteTable
from .subject import Subject

MODELS = 60
"""Models whose sites are compared."""


def because(
    subject: Subject, seed: int = 0, like: tuple[int, ...] | None = None
) -> tuple[str, ...]:
    """What tells failing sites from others, as a guard to write where there is one, and the
    smallest failing model. Nothing where no site fails by itself. `like`: the choices of a failing
    model, so that more of them are drawn.
    """
    missing = replace(subject, source=with_hole(subject.source))
    sample = Sample(replace(subject, source=opened(missing.source)), guard_holes(missing.source)[0])
    sample.draw(MODELS, f"because/{seed}", like)
    table, found = legal(missing, sample)
    if not table.bad:
        return ()
    smallest = f"the smallest model at which they differ: {sample.smallest(table.bad).told()}"
    good, bad = table.good.bit_count(), table.bad.bit_count()
    if not good:
        return f"the sides differ at all {bad} sites that were drawn", smallest
    counted = f"the sides differ at {bad} of {bad + good} sites"
    ops = _told_by_ops(sample, table) if found is None else ""
    if ops:
        return f"{counted}, {ops}; no condition that a guard can ask tells which", smallest
    if found is None:
        similar = (f"but not at {site.told()}" for site in alike(sample, table) if site.agrees)
        return f"{counted}; no single condition tells which", smallest, *similar
    missing_guard = f"a guard is missing: where {{ {found.text} }}"
    named = _named(subject.source, missing.source, found)
    return f"{counted}, at none where `{found.text}`", smallest, missing_guard + named


def _told_by_ops(sample: Sample, table: SiteTable) -> str:
    """The op that all failing sites have and many others lack, or the other way round."""
    names = dict.fromkeys(call.op.name for site in sample.instances for call in site.calls)
    found: list[tuple[int, str]] = []
    for name in sorted(names):
        have = sum(
            any(call.op.name == name for call in site.calls) << number
            for number, site in enumerate(sample.instances)
        )
        for word, fails in (("without", have), ("with", ~have)):
            if not table.bad & ~fails:
                found.append(((table.good & ~fails).bit_count(), f"at none {word} `{name}`"))
    kept, said = max(found, default=(0, ""))
    return said if kept >= max(1, LEAST * table.good.bit_count()) else ""


def _named(rule: t.Rule, missing: t.Rule, found: Conjunction) -> str:
    """The lines of the pattern that need a name for the guard."""
    before = {op.handle for op in patterns(rule) if isinstance(op, t.OpPattern)}
    added = [op for op in patterns(missing) if isinstance(op, t.OpPattern)]
    lines = [op for op in added if op.handle not in before and str(op.handle) in found.text]
    return "".join(f", with `{op.span.flat}`" for op in lines)


def with_hole(rule: t.Rule) -> t.Rule:
    """The rule, read again with an open guard behind those that it has, and with a name for each op
    that has none: a guard can speak of no other.
    """
    text, start = rule.span.source.text, rule.span.start
    asked = [c for c in rule.clauses if isinstance(c, (t.Match, t.MatchDim, t.Unless, t.Where))]
    added = {max(clause.span.end for clause in asked): "\n  where { ? }\n"}
    taken = {node.text for node in t.walk(rule) if isinstance(node, (t.Word, t.Name))}
    free = (name for name in map("n{}".format, count(1)) if name not in taken)
    added |= {op.span.end: f" as {next(free)}" for op in patterns(rule) if _is_nameless(op)}
    for place in sorted(added, reverse=True):
        text = text[:place] + added[place] + text[place:]
    file = parse(text, rule.span.source.name)
    found = (r for r in file.all(t.Rule) if r.span.start == start)
    return next(found)


def _is_nameless(pattern: t.Pattern) -> bool:
    return isinstance(pattern, t.OpPattern) and pattern.handle is None and not pattern.repeat
