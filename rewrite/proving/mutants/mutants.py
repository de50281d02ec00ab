"""Mutants of a rule: the same rule with one mistake in what it computes.

They come from the tree alone: every piece of `let`, `perturb` and `rewrite`, and what may stand in
its place by mistake. Left out is what the tree shows to be no mistake: another order of factors
that commute, a keyword that says the default, `from` (it says where weights live, not what they
are), and what both halves of an approximate rule share: a rule that perturbs to another rank and
builds that rank is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ....grammar.diagnostics import Span
from ....grammar.fmt import format as _forms  # noqa: F401  registers the text of each statement
from ....grammar.fmt.expr import doc
from ....grammar.fmt.item import item
from ....grammar.tree import tree as t
from ...ops.vocabulary import Vocabulary
from . import alter_steps, alter_values
from .alter_steps import keyword_dropped, wrapped
from .pieces import Above, Change
from .roles import Roles, roles

LEAST = 10
"""Rules with fewer mutants get more: their results are spoilt by ops behind them."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """name: the mistake, such as "bias dropped". text: the piece before and after."""

    name: str
    source: t.Rule
    place: Span
    text: str


def mutants(rule: t.Rule, vocabulary: Vocabulary) -> tuple[Mutant, ...]:
    """At least ten mutants where the rule builds anything, each another rule."""
    known = roles(rule, vocabulary)
    found: dict[t.Rule, Mutant] = {}
    pieces = list(_pieces(rule))
    for piece in pieces:
        for mutant in _mutants_at(piece, known):
            found.setdefault(mutant.source, mutant)
    found.pop(rule, None)
    for piece in pieces if len(found) < LEAST else ():
        for mutant in _spoilt(piece, known):
            found.setdefault(mutant.source, mutant)
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a rule, and how to put another (or nothing) in its place."""

    node: t.Node
    put: Callable[[t.Node | None], t.Node]
    above: Above


def _mutants_at(piece: _Piece, known: Roles) -> Iterator[Mutant]:
    for phrase, changed in _changes(piece, known):
        yield _mutant(piece, phrase, changed)
    if isinstance(piece.node, t.Keyword):
        phrase = keyword_dropped(piece.node, piece.above[0], known)
        if phrase:
            yield _mutant(piece, phrase, None)


def _spoilt(piece: _Piece, known: Roles) -> Iterator[Mutant]:
    if isinstance(piece.node, t.Build):
        for change in wrapped(piece.node, known):
            yield _mutant(piece, *change)


def _changes(piece: _Piece, known: Roles) -> Iterator[Change]:
    for kind, alter in (*alter_values.KINDS, *alter_steps.KINDS):
        if isinstance(piece.node, kind):
            yield from alter(piece.node, piece.above, known)


def _mutant(piece: _Piece, phrase: str, changed: t.Node | None) -> Mutant:
    source = piece.put(changed)
    assert isinstance(source, t.Rule)
    return Mutant(phrase, source, piece.node.span, _difference(piece.node, changed))


def _difference(before: t.Node, after: t.Node | None) -> str:
    if isinstance(before, t.Call) and isinstance(after, t.Call):
        added = after.keywords[len(before.keywords) :]
        if added and after.function == before.function:
            return f"nothing -> {flat(added[0])}"
    return f"{flat(before)} -> {'nothing' if after is None else flat(after)}"


def flat(node: t.Node) -> str:
    """Canonical text on one line."""
    if isinstance(node, (t.Build, t.Binding, t.Assign)):
        return item(node).flat
    return doc(node).flat


# -- where to change a rule ------------------------------------------------------------------------


def _pieces(rule: t.Rule) -> Iterator[_Piece]:
    """What decides the numbers of the rewrite and is not shared with `perturb`."""
    built, moved = _read_by(rule, t.Rewrite), _read_by(rule, t.Perturb)
    for piece in _below(rule, lambda changed: changed or rule, ()):
        clause = next(
            (n for n in piece.above if isinstance(n, (t.Let, t.Perturb, t.Rewrite))), None
        )
        binding = next((n for n in (piece.node, *piece.above) if isinstance(n, t.Binding)), None)
        targets = {word.text for word in binding.targets} if binding is not None else set()
        if clause is None or (targets and not (targets & built and not targets & moved)):
            continue
        yield piece


def _below(node: t.Node, put: Callable[[t.Node | None], t.Node], above: Above) -> Iterator[_Piece]:
    """The node and everything below it."""
    yield _Piece(node, put, above)
    inner = (node, *above)
    for field in node.content:
        value = getattr(node, field)
        if isinstance(value, t.Node):
            yield from _below(value, _setter(node, put, field), inner)
        for index, held in enumerate(value if isinstance(value, tuple) else ()):
            if isinstance(held, t.Node):
                yield from _below(held, _setter(node, put, field, index), inner)


def _setter(
    node: t.Node, put: Callable[[t.Node | None], t.Node], field: str, index: int | None = None
) -> Callable[[t.Node | None], t.Node]:
    def set_(changed: t.Node | None) -> t.Node:
        if index is None:
            return put(t.replace(node, **{field: changed}))
        value = getattr(node, field)
        kept = () if changed is None else (changed,)
        return put(t.replace(node, **{field: (*value[:index], *kept, *value[index + 1 :])}))

    return set_


def _read_by(rule: t.Rule, kind: type) -> set[str]:
    """The names that clauses of a kind read, through `let` too."""
    found = {n for clause in rule.all(kind) for n in _names(clause)}
    bindings = [b for let in rule.all(t.Let) for b in let.bindings]
    for binding in reversed(bindings):
        if found & {word.text for word in binding.targets}:
            found |= _names(binding.value)
    return found


def _names(node: t.Node) -> set[str]:
    return {n.text for n in t.walk(node) if isinstance(n, t.Name)}
