"""What holds at every site at which a rule applies, beside its pattern."""

from __future__ import annotations

from collections.abc import Iterator

from ..algebra.symbolic import TooLarge, const
from ..algebra.unify import Mismatch
from ..tree import tree as t
from ..tree.clauses import guards
from .term import Term
from .terms import Terms


def assume(rule: t.Rule, terms: Terms, *, equal: bool) -> None:
    """Give the solver what the rule takes for granted: weights that it computes with are there, and
    (with `equal`) sizes that a guard asks to be equal are.
    """
    for equation in equations(rule) if equal else ():
        _equal(terms, equation)
    for path in _computed_with(rule):
        presence = terms.parts[path].presence if path in terms.parts else None
        if presence is not None:
            terms.solver.equate(presence, const(1), ("present", path))


def equations(rule: t.Rule) -> list[t.Binary]:
    """The guards `C == L`, each part of an `and` by itself."""
    waiting = [guard.condition for guard in guards(rule)]
    found: list[t.Binary] = []
    while waiting:
        condition = waiting.pop()
        if isinstance(condition, t.Binary) and condition.op == "and":
            waiting += [condition.left, condition.right]
        elif isinstance(condition, t.Binary) and condition.op == "==":
            found.append(condition)
    return found


def _equal(terms: Terms, guard: t.Binary) -> None:
    """Of what is known without a model alone: sizes, whole settings, the rank of a value."""
    asked = guard.left
    if isinstance(asked, t.Call) and asked.function.span.text == "rank" and len(asked.args) == 1:
        _rank(terms, asked.args[0], guard.right)
        return
    try:
        left, right = terms.of(guard.left), terms.of(guard.right)
    except TooLarge:
        return
    count = len(left.items or right.items or ())
    pairs = zip(_spread(left, count), _spread(right, count), strict=False)
    for place, (a, b) in enumerate(pairs):
        if a.number is not None and b.number is not None:
            terms.solver.equate(a.number, b.number, ("guard", id(guard)), place)


def _spread(term: Term, count: int) -> tuple[Term, ...]:
    """A number is compared with each element of a pair."""
    return term.items if term.items is not None else (term,) * max(1, count)


def _rank(terms: Terms, value: t.Expr, rank: t.Expr) -> None:
    shape, number = terms.of(value).shape, terms.number(rank)
    count = None if number is None else number.constant
    if shape is None or not isinstance(count, int) or not 0 <= count <= MOST_AXES:
        return
    axes = tuple(terms.solver.fresh("N") for _ in range(count))
    try:
        terms.solver.unify(shape, axes, ("guard", value.span.start))
    except Mismatch:
        return  # no value is like that: the guard keeps the rule from every site


MOST_AXES = 8


def _computed_with(rule: t.Rule) -> Iterator[tuple[str, str]]:
    """(node, weight) of each weight that a rule computes with: where it is absent nothing can be
    computed, and the site is left. `n.weight or 1` does without.
    """
    waiting: list[t.Node] = [*rule.all(t.Let, t.Perturb, t.Rewrite)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, t.Binary) and node.op in ("and", "or"):
            continue
        if isinstance(node, t.Binary):
            sides = (side for side in (node.left, node.right) if isinstance(side, t.Attribute))
            yield from ((s.value.text, s.name) for s in sides if isinstance(s.value, t.Name))
        waiting += t.children(node)
