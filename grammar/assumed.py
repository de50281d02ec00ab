"""What holds at every site at which a rule applies, beside its pattern."""

from __future__ import annotations

from collections.abc import Iterator

from . import tree as t
from .symbolic import const
from .terms import Terms


def assume(rule: t.Rule, terms: Terms) -> None:
    """Give the solver what the rule takes for granted."""
    for path in _computed_with(rule):
        presence = terms.parts[path].presence if path in terms.parts else None
        if presence is not None:
            terms.solver.equate(presence, const(1), ("present", path))


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
