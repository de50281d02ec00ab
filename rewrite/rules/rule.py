"""A rule compiled for the engine: pattern, guards, what it defines anew, and its arguments."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...grammar.checks.structure import is_budget
from ...grammar.checks.unsupported import Externs, resizes, unsupported
from ...grammar.diagnostics import Label, LissomError, did_you_mean, fail
from ...grammar.documents import sha256
from ...grammar.text.fragment import parse_expression
from ...grammar.tree import tree as t
from ...grammar.tree.clauses import claims, names_in, over_images, over_ops, typed
from ...grammar.tree.fold import literal
from .pattern import MatchStep, Pattern, compile_pattern, steps_from

MENTIONED = 8
"""Numbers up to this are drawn anyway when a rule is tested."""


@dataclass(frozen=True, eq=False)
class CompiledRule:
    """One rule with its arguments bound. `order` is its place in the program: it breaks ties of
    priority. unlimited: its budgets do not count, as where its effect is to be measured.
    """

    source: t.Rule
    args: Mapping[str, Any]
    pattern: Pattern
    unless: tuple[tuple[Pattern, tuple[MatchStep, ...]], ...]
    outputs: frozenset[str]
    given: Mapping[str, Any] = field(default_factory=dict)
    at: str | None = None
    order: int = 0
    unlimited: bool = False
    parsed: dict[str, t.Expr] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.source.name.text

    @property
    def kind(self) -> str:
        return self.source.kind

    @cached_property
    def label(self) -> str:
        """The rule with the arguments that the program gave."""
        given = ", ".join(f"{key} = {value}" for key, value in self.given.items())
        return f"{self.name}({given})" if given else self.name

    @cached_property
    def place(self) -> str:
        """`file:line:column` of the rule's name."""
        return str(self.source.name.span)

    @cached_property
    def priority(self) -> int:
        clause = self.source.one(t.Priority)
        return clause.value if clause else 0

    @cached_property
    def recursive(self) -> bool:
        return self.source.one(t.Recursive) is not None

    @cached_property
    def on_shared(self) -> str:
        clause = self.source.one(t.OnShared)
        return clause.policy.text if clause else "skip"

    @property
    def dim(self) -> str:
        """The dimension that the rule ranges over; "" if it ranges over none."""
        clause = self.source.one(t.MatchDim)
        return "" if clause is None else clause.dim.text

    @property
    def param(self) -> str:
        """The parameter that the rule ranges over; "" if it ranges over none."""
        clause = self.source.one(t.MatchParam)
        return "" if clause is None else clause.name.text

    @property
    def value(self) -> str:
        """The value of the model that the rule ranges over; "" if it ranges over none."""
        clause = self.source.one(t.MatchValue)
        return "" if clause is None else clause.name.text

    @cached_property
    def images(self) -> bool:
        """Whether the dimension is the height of an image input."""
        return bool(over_images(self.source))

    @cached_property
    def resize(self) -> t.Assign:
        """`D := keep`."""
        return next(s for r in self.source.all(t.Rewrite) for s in r.steps if resizes(s, self.dim))

    @cached_property
    def claims(self) -> tuple[t.Claim, ...]:
        found = tuple(claims(self.source))
        return tuple(c for c in found if not is_budget(c)) if self.unlimited else found

    @cached_property
    def measures(self) -> bool:
        """Whether a claim is about what sites see: `error(y) <= 5%`."""
        return self.kind == "approx" and not self.claimed.isdisjoint(("error", "equal"))

    @cached_property
    def claimed(self) -> frozenset[str]:
        """The names that its claims mention."""
        return frozenset(name.text for claim in self.claims for name in names_in(claim))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the rule's text: what a certificate names."""
        return sha256(self.source.span.text)

    @cached_property
    def hints(self) -> tuple[int | float, ...]:
        """The numbers that its guards mention, but for the smallest."""
        guards = [g for w in self.source.all(t.Where) for g in w.guards]
        found = (literal(node) for g in guards for node in t.walk(g) if isinstance(node, t.Expr))
        numbers = (n for n in found if isinstance(n, (int, float)) and not isinstance(n, bool))
        return tuple(dict.fromkeys(n for n in numbers if abs(n) > MENTIONED))

    def message(self, text: str) -> t.Expr:
        """The parsed `{expr}` of a guard message."""
        if text not in self.parsed:
            self.parsed[text] = parse_expression(text)
        return self.parsed[text]


def compile_rule(
    source: t.Rule,
    args: Mapping[str, Any],
    at: str | None = None,
    order: int = 0,
    functions: Container[str] | None = None,
    declared: Externs | None = None,
) -> CompiledRule:
    """The rule for the engine. Raises where the rule needs parts of the language that have no
    engine yet, and, with `functions`, where it calls a function of `declared` that is not among
    them.
    """
    check_supported(source, functions, declared)
    statements = [s for match in source.all(t.Match) for s in match.patterns]
    if not over_ops(source):
        values = source.all(t.MatchValue)
        bare = compile_pattern(tuple(map(typed, values)))
        outputs = frozenset(clause.name.text for clause in values)
        return CompiledRule(
            source, _arguments(source, args), bare, (), outputs, dict(args), at, order
        )
    pattern = compile_pattern(statements)
    known = set(pattern.produced) | {name for op in pattern.ops for name in op.reads}
    if not pattern.anchors():
        raise fail(
            "P001",
            "the pattern has no op that is always there",
            Label(source.name.span),
            help="match one op without `?` or `*`",
        )
    pattern.order(pattern.anchors()[0])
    unless = tuple(_unless(clause, known, len(pattern.ops)) for clause in source.all(t.Unless))
    built = {
        w.text
        for r in source.all(t.Rewrite)
        for s in r.steps
        if isinstance(s, t.Build)
        for w in s.targets
    }
    every = set(pattern.produced)  # nothing goes where nothing is rewritten
    outputs = frozenset(every if source.kind == "observe" else built & every)
    return CompiledRule(
        source, _arguments(source, args), pattern, unless, outputs, dict(args), at, order
    )


def _unless(clause: t.Unless, known: set[str], first: int) -> tuple[Pattern, tuple[MatchStep, ...]]:
    pattern = compile_pattern(clause.patterns, first)
    return pattern, tuple(steps_from(pattern, known))


def _arguments(source: t.Rule, args: Mapping[str, Any]) -> dict[str, Any]:
    """Declared defaults, overridden by what the program gives."""
    defaults = {p.name.text: literal(p.default) for p in source.params if p.default is not None}
    unknown = [name for name in args if name not in {p.name.text for p in source.params}]
    if unknown:
        known = [p.name.text for p in source.params]
        hint = next(iter(did_you_mean(unknown[0], known)), f"known: {', '.join(known) or 'none'}")
        raise fail(
            "T004",
            f"`{source.name}` has no parameter `{unknown[0]}`",
            Label(source.name.span),
            help=hint,
        )
    bound = {**defaults, **args}
    missing = [p.name.text for p in source.params if p.name.text not in bound]
    if missing:
        raise fail("T004", f"`{source.name}` needs `{missing[0]}`", Label(source.name.span))
    for param in source.params:
        _check_range(param, bound[param.name.text])
    return bound


def _check_range(param: t.Param, value: Any) -> None:
    """Whole numbers in rules count things, shares are parts of one: the checker relies on it, so
    arguments must keep it.
    """
    kind, fits = param.type.name, True
    if kind == "int" and value is not None:
        fits = isinstance(value, int) and value >= 1
    if kind == "frac" and value is not None:
        fits = isinstance(value, (int, float)) and 0 <= value <= 1
    if not fits:
        wanted = "a whole number from 1 on" if kind == "int" else "a share from 0% to 100%"
        raise fail(
            "T002",
            f"`{param.name}` is {value}, but must be {wanted}",
            Label(param.span, "declared here"),
        )


def check_supported(
    source: t.Rule, functions: Container[str] | None = None, declared: Externs | None = None
) -> None:
    """Raises R002 where the rule needs parts of the language that have no engine yet, V004 where a
    guard is left open, N001 for a function that nobody gives. `functions` are the names that can be
    computed, None if that is not asked, and `declared` where they are declared: in the library if
    left out.
    """
    for refused in unsupported(source, functions, declared):
        raise LissomError(refused)
