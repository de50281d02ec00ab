"""O001, O002, O003: rules of one stage that want the same site, and rules written twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product

from ..algebra.symbolic import TooLarge
from ..diagnostics import Label
from ..tree import clauses
from ..tree import tree as t
from ..tree.renaming import dump, renamed
from .declared import SymbolTable
from .embed import Embedding, embed, is_literal, root
from .report import Messages
from .sampling import Sampler, guards_of
from .shapes import models
from .sides import Sides, SideStep, sides

MAX_PAIRS = 3000
MAX_SITES = 60
"""Pairs of rules of a file that are compared, and that are tried on drawn sites; it says so."""


SETTLE = "give one of them a `priority`, or put them into steps of their own"

NAMED = 4
"""Pairs that one warning names."""


@dataclass(slots=True)
class Effort:
    """What is left to spend on pairs of rules in this file."""

    pairs: int = MAX_PAIRS
    sites: int = MAX_SITES


@dataclass(frozen=True, slots=True)
class GroupedRule:
    """A rule where a group names it."""

    rule: t.Rule
    both: Sides
    word: t.Word
    at: str | None

    @property
    def priority(self) -> int:
        found = self.rule.one(t.Priority)
        return found.value if found else 0


Overlap = tuple[GroupedRule, GroupedRule, bool]
"""Two rules that want the same sites, and whether that is certain."""


def check_overlap(
    stage: t.Stage,
    group: Sequence[GroupedRule],
    known: SymbolTable,
    effort: Effort,
    report: Messages,
) -> None:
    """Compare the rules of one `fixpoint` or `once` group at the same root."""
    found: list[Overlap] = []
    _compare(stage, group, known, effort, report, found)
    _warn(stage, found, report)


def _compare(
    stage: t.Stage,
    group: Sequence[GroupedRule],
    known: SymbolTable,
    effort: Effort,
    report: Messages,
    overlaps: list[Overlap],
) -> None:
    for first, second in combinations(group, 2):
        if effort.pairs <= 0 or effort.sites <= 0:
            label = Label(stage.name.span, "from here on, rules are not compared")
            message = "not all pairs of rules were compared for overlap"
            report.warn("V003", message, label, help="split the file")
            return
        effort.pairs -= 1
        if first.rule is not second.rule and first.at == second.at:
            _pair(stage, first, second, known, effort, report, overlaps)


def _pair(
    stage: t.Stage,
    first: GroupedRule,
    second: GroupedRule,
    known: SymbolTable,
    effort: Effort,
    report: Messages,
    overlaps: list[Overlap],
) -> None:
    winner, loser = (first, second) if first.priority >= second.priority else (second, first)
    if _more_general(winner, loser, known):
        _unreachable(stage, winner, loser, report)
        return
    if first.priority != second.priority:
        return
    bottom = root(second.both)
    if bottom is None:
        return
    found = embed(first.both, bottom, second.both.left, known, loose=True)
    if found is None:
        return
    effort.sites -= 1
    certain = _satisfiable(first, second, found, known)
    if certain and "approx" in (first.rule.kind, second.rule.kind):
        _order_matters(stage, first, second, report)
    elif certain is not None:
        overlaps.append((first, second, certain))


def _more_general(winner: GroupedRule, loser: GroupedRule, known: SymbolTable) -> bool:
    """Whether every match of the loser is a match of the winner, guards and shapes included."""
    bottom = root(loser.both)
    if bottom is None or winner.rule.all(t.Unless, t.MatchDim, t.MatchParam, t.MatchValue):
        return False
    found = embed(winner.both, bottom, loser.both.left, known, loose=False)
    if found is None or winner.both.shapes:
        return False
    names = _names(found)
    theirs = set(guards_of(loser.rule))
    if not all(renamed(guard, names) in theirs for guard in guards_of(winner.rule)):
        return False
    return all(_plain(pattern.settings) for pattern, _ in found.steps)


def _plain(settings: dict[str, t.Expr]) -> bool:
    """No attribute name is used twice: that would be a condition."""
    bound = [e.text for e in settings.values() if isinstance(e, t.Name)]
    return len(bound) == len(set(bound))


def _names(found: Embedding) -> dict[str, t.Expr]:
    """The names of the pattern in terms of what they meet."""
    names: dict[str, t.Expr] = {}
    for mine, theirs in found.values.items():
        if isinstance(theirs, str):
            names[mine] = t.Name(theirs, span=found.steps[0][0].span)
    for pattern, target in found.steps:
        if pattern.handle and target.handle:
            names[pattern.handle] = t.Name(target.handle, span=target.span)
        named = {a: e for a, e in pattern.settings.items() if isinstance(e, t.Name)}
        shared = named.keys() & target.settings.keys()
        names |= {named[attr].text: target.settings[attr] for attr in shared}
    return names


def _satisfiable(
    first: GroupedRule, second: GroupedRule, found: Embedding, known: SymbolTable
) -> bool | None:
    """Whether one site satisfies both: True, False for `may`, None if no instance was found."""
    joint = _joint(first, second, found)
    both = sides(joint, known)
    try:
        model = next(iter(models(joint, both, known)), None)
    except TooLarge:
        return None
    if model is None or model.faults:
        return None
    sampler = Sampler(model, guards_of(joint))
    samples = sampler.instances()
    if not samples:
        return None
    guards = guards_of(joint)
    return all(sampler.truth.holds(g, s) is not None for g in guards for s in samples[:1])


def _joint(first: GroupedRule, second: GroupedRule, found: Embedding) -> t.Rule:
    """A rule that matches where both match: the second one's pattern, met by the first one's."""
    prefix = _prefixed(first.rule)
    names = prefix | _names(found)
    patterns: list[t.Pattern] = []
    meets = {id(target): pattern for pattern, target in found.steps}
    back: dict[str, t.Expr] = {}
    steps = {step.results: step for step in second.both.left}
    for pattern in clauses.patterns(second.rule):
        targets = pattern.targets if isinstance(pattern, t.OpPattern) else ()
        other = meets.get(id(steps.get(tuple(word.text for word in targets))))
        if isinstance(pattern, t.OpPattern) and other is not None:
            pattern = _merged(pattern, other, names, back)
        patterns.append(pattern)
    patterns += _shape_patterns(first, names)
    guards = [renamed(renamed(g, names), back) for g in guards_of(first.rule)]
    guards += [renamed(g, back) for g in guards_of(second.rule)]
    where = t.Where(tuple(t.Guard(g, None, span=g.span) for g in guards), span=second.rule.span)
    match = t.Match(None, tuple(patterns), span=second.rule.span)
    params = {p.name.text: p for p in (*first.rule.params, *second.rule.params)}
    return t.replace(second.rule, params=tuple(params.values()), clauses=(match, where))


def _prefixed(first: t.Rule) -> dict[str, t.Expr]:
    """Sizes of the first rule get names of their own: equal names in two rules mean nothing."""
    shapes = [p for p in clauses.patterns(first) if isinstance(p, t.ShapePattern)]
    names = [name for shape in shapes for name in clauses.names_in(shape.type)]
    return {n.text: t.Name(f"{n.text}_first", span=n.span) for n in names}


def _merged(
    pattern: t.OpPattern, other: SideStep, names: dict[str, t.Expr], back: dict[str, t.Expr]
) -> t.OpPattern:
    """The attributes that either rule constrains; a literal replaces the name of the other."""
    attrs = {k.name.text: k for k in pattern.attrs}
    for attr, expr in other.settings.items():
        mine = attrs.get(attr)
        if mine is None:
            word = t.Word(attr, span=expr.span)
            attrs[attr] = t.Keyword(word, renamed(expr, names), span=expr.span)
        elif is_literal(expr) and isinstance(mine.value, t.Name):
            back[mine.value.text] = expr
            attrs[attr] = t.replace(mine, value=expr)
    return t.replace(pattern, attrs=tuple(attrs.values()))


def _shape_patterns(first: GroupedRule, names: dict[str, t.Expr]) -> list[t.Pattern]:
    shapes: list[t.Pattern] = []
    for shape in first.both.shapes:
        met = names.get(shape.path.parts[0].text)
        if isinstance(met, t.Name):
            word = t.Word(met.text, span=met.span)
            path = t.replace(shape.path, parts=(word, *shape.path.parts[1:]))
            shapes.append(t.replace(shape, path=path, type=renamed(shape.type, names)))
    return shapes


def _order_matters(
    stage: t.Stage, first: GroupedRule, second: GroupedRule, report: Messages
) -> None:
    message = f"`{first.rule.name}` and `{second.rule.name}` overlap in stage `{stage.name}`"
    note = "the order changes the result, since one of them is approx"
    report.error("O001", message, *_labels(first, second), note=note, help=SETTLE)


def _warn(stage: t.Stage, found: Sequence[Overlap], report: Messages) -> None:
    """One line for a group, however many pairs of it want the same sites."""
    if not found:
        return
    first, second, certain = found[0]
    verb = "overlap" if certain else "may overlap"
    pairs = ", ".join(f"`{a.rule.name}` and `{b.rule.name}`" for a, b, _ in found[:NAMED])
    more = f" and {len(found) - NAMED} more pairs" if len(found) > NAMED else ""
    count = f"{len(found)} pairs of rules: " if len(found) > 1 else ""
    message = f"{count}{pairs}{more} {verb} in stage `{stage.name}`"
    report.warn("O001", message, *_labels(first, second), help=SETTLE)


def _labels(first: GroupedRule, second: GroupedRule) -> tuple[Label, Label]:
    wanted = Label(second.word.span, "wants the same sites")
    return wanted, Label(first.word.span, "as this rule, at the same priority")


def _unreachable(stage: t.Stage, winner: GroupedRule, loser: GroupedRule, report: Messages) -> None:
    message = f"rule `{loser.rule.name}` can never fire in stage `{stage.name}`"
    says = f"priority {winner.priority}, matches all that the other matches"
    labels = Label(loser.rule.name.span, "more specific"), Label(winner.rule.name.span, says)
    help = f"`priority {winner.priority + 1}` on {loser.rule.name}, or delete it"
    report.error("O002", message, *labels, help=help)


# -- O003 ------------------------------------------------------------------------------------------


def check_duplicates(
    rules: Iterable[tuple[t.Rule, Sides]], known: SymbolTable, report: Messages
) -> None:
    """Two rules that differ in nothing but names and the order of commutative operands."""
    seen: dict[str, t.Rule] = {}
    for rule, both in rules:
        texts = _texts(rule, both, known)
        first = next((seen[text] for text in texts if text in seen), None)
        if first is not None:
            places = Label(rule.name.span, "the same rule again"), Label(first.name.span, "as here")
            message = f"`{rule.name}` is `{first.name}` with other names"
            report.error("O003", message, *places, help="delete one of them")
        seen.setdefault(texts[0], rule)


def _texts(rule: t.Rule, both: Sides, known: SymbolTable) -> list[str]:
    """The normal texts of a rule, one for each order of its commutative operands, at most 8."""
    clauses = tuple(c for c in rule.clauses if not isinstance(c, (t.Doc, t.Match)))
    patterns = [p for m in rule.all(t.Match) for p in m.patterns]
    options = [_orders(p, known) if isinstance(p, t.OpPattern) else (p,) for p in patterns]
    texts = []
    for chosen in islice(product(*options), 8):
        top = root(both)
        first = set(top.results) if top is not None else set()
        ordered = sorted(chosen, key=lambda p: not _makes(p, first))
        texts.append(rule.kind + dump((*ordered, rule.params, clauses), {}))
    return texts


def _makes(pattern: t.Pattern, names: set[str]) -> bool:
    return isinstance(pattern, t.OpPattern) and any(w.text in names for w in pattern.targets)


def _orders(pattern: t.OpPattern, known: SymbolTable) -> tuple[t.OpPattern, ...]:
    facts = list(known.facts(tuple(w.text for w in pattern.ops.names)))
    if len(pattern.operands) != 2 or not all("commutative" in f.traits for f in facts) or not facts:
        return (pattern,)
    return pattern, t.replace(pattern, operands=tuple(reversed(pattern.operands)))
