"""Values for the parameters of a rule on trial."""

from __future__ import annotations

from typing import Any

from ...grammar.tree import tree as t
from ...grammar.tree.fold import literal
from .choices.source import ChoiceSource

_SHARES = (1.0, 0.5, 0.9, 0.25, 0.02)
_OTHER = "another"
"""A word that no guard speaks of."""


def _words(rule: t.Rule, name: str) -> tuple[str, ...]:
    """What guards compare a parameter with."""
    nodes = [node for where in rule.all(t.Where) for node in t.walk(where)]
    pairs = [(n.left, n.right) for n in nodes if isinstance(n, t.Binary) and n.op == "=="]
    return tuple(
        right.value
        for left, right in pairs
        if isinstance(left, t.Name) and left.text == name and isinstance(right, t.String)
    )


def arguments(source: ChoiceSource, rule: t.Rule) -> dict[str, Any]:
    """Values for the rule's parameters: mostly the declared ones, and others of their type."""
    given: dict[str, Any] = {}
    for param in rule.params:
        default = None if param.default is None else literal(param.default)
        required = param.default is None
        if not required and not source.chance(70 if isinstance(default, int) else 40):
            continue
        if param.type.name == "int":
            given[param.name.text] = source.integer(1, 4)
        elif param.type.name == "frac":
            given[param.name.text] = source.choice(_SHARES)
        elif param.type.name == "bool":
            given[param.name.text] = not default
        elif param.type.name == "str" and (words := _words(rule, param.name.text)):
            given[param.name.text] = source.choice((*words, _OTHER))
    return given
