"""What stands in the clauses of a rule, as flat sequences."""

from __future__ import annotations

from collections.abc import Iterator

from . import tree as t

RESOLUTION = "resolution"
"""The kind of dimension that is the height of an image input."""


def builds(rule: t.Rule) -> Iterator[t.Build]:
    return (s for clause in rule.all(t.Rewrite) for s in clause.steps if isinstance(s, t.Build))


def moves(rule: t.Rule) -> Iterator[t.Assign | t.Effect]:
    return (move for clause in rule.all(t.Perturb) for move in clause.moves)


def bindings(rule: t.Rule) -> Iterator[t.Binding]:
    return (binding for clause in rule.all(t.Let) for binding in clause.bindings)


def guards(rule: t.Rule) -> Iterator[t.Guard]:
    return (g for clause in rule.all(t.Where) for g in clause.guards if isinstance(g, t.Guard))


def guard_holes(rule: t.Rule) -> list[t.Hole]:
    """The places at which a guard is missing: `where { ? }`."""
    return [g for clause in rule.all(t.Where) for g in clause.guards if isinstance(g, t.Hole)]


def over_images(rule: t.Rule) -> list[t.MatchDim]:
    """`match dim R in resolution`."""
    return [clause for clause in rule.all(t.MatchDim) if clause.domain.text == RESOLUTION]


def over_ops(rule: t.Rule) -> bool:
    """Whether a rule matches ops, and ranges over nothing else."""
    return not rule.all(t.MatchDim, t.MatchParam, t.MatchValue)


def typed(clause: t.MatchValue) -> t.ShapePattern:
    """The `y : f[N, C]` of `match value y : f[N, C] at ...`."""
    return t.ShapePattern(
        t.Path((clause.name,), span=clause.name.span), clause.type, span=clause.span
    )


def patterns(rule: t.Rule) -> Iterator[t.Pattern]:
    return (pattern for clause in rule.all(t.Match) for pattern in clause.patterns)


def claims(rule: t.Rule) -> Iterator[t.Claim]:
    return (c for clause in rule.all(t.Ensure) for c in clause.items if isinstance(c, t.Claim))


def facts(rule: t.Rule) -> Iterator[t.Fact]:
    return (f for clause in rule.all(t.Ensure) for f in clause.items if isinstance(f, t.Fact))


def functions_in(node: t.Node) -> set[str]:
    """The functions that an expression calls."""
    calls = (found.function for found in t.walk(node) if isinstance(found, t.Call))
    return {function.text for function in calls if isinstance(function, t.Name)}


def names_in(node: t.Node) -> Iterator[t.Name]:
    return (name for name in t.walk(node) if isinstance(name, t.Name))
