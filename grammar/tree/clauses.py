"""What stands in the clauses of a rule, as flat sequences."""

from __future__ import annotations

from collections.abc import Container, Iterator

from . import tree as t

CALIBRATED, INVALIDATES = "calibrated", "invalidates"
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


def attached_by(rule: t.Rule) -> frozenset[str]:
    """The names under which a rule attaches observers: `range` of `attach ... as x.range`."""
    steps = (s for clause in rule.all(t.Rewrite) for s in clause.steps)
    return frozenset(s.path.parts[-1].text for s in steps if isinstance(s, t.Attach))


def reads_observers(rule: t.Rule, attached: Container[str]) -> t.Attribute | None:
    """Where a rule reads what an observer of one of these names saw; None where it does not."""
    found = (node for node in t.walk(rule) if isinstance(node, t.Attribute))
    return next((node for node in found if node.name in attached), None)


def outdates_observers(rule: t.Rule, attached: Container[str]) -> bool:
    """Whether other numbers flow where the rule was applied, so that what observers saw before
    counts no more. A rule that reads it goes by these very numbers.
    """
    named = any(w.text == CALIBRATED for f in facts(rule) if f.kind == INVALIDATES for w in f.names)
    return named or (rule.kind == "approx" and reads_observers(rule, attached) is None)


def refs_of(step: t.Step) -> tuple[t.Ref, ...]:
    """The rules that a simple step runs."""
    if isinstance(step, (t.Once, t.Fixpoint)):
        return step.refs
    return (step.ref,) if isinstance(step, t.Each) else ()


def functions_in(node: t.Node) -> set[str]:
    """The functions that an expression calls."""
    calls = (found.function for found in t.walk(node) if isinstance(found, t.Call))
    return {function.text for function in calls if isinstance(function, t.Name)}


def names_in(node: t.Node) -> Iterator[t.Name]:
    return (name for name in t.walk(node) if isinstance(name, t.Name))


def has_exit(rule: t.Rule) -> bool:
    """Whether samples may leave where the rule is applied."""
    return any(isinstance(step, t.Exit) for r in rule.all(t.Rewrite) for step in r.steps)
