"""A rule compiled for the engine: pattern, guards, what it defines anew, and its arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..grammar import tree as t
from ..grammar.clauses import holes, over_images
from ..grammar.diagnostics import Label, did_you_mean, fail
from ..grammar.fragment import parse_expression
from .binding import literal
from .extent import DIM_QUESTIONS
from .pattern import Pattern, Step, compile_pattern, steps_from


@dataclass(frozen=True, eq=False)
class Rule:
    """One rule with its arguments bound. `order` is its place in the program: it breaks ties of
    priority.
    """

    source: t.Rule
    args: Mapping[str, Any]
    pattern: Pattern
    unless: tuple[tuple[Pattern, tuple[Step, ...]], ...]
    outputs: frozenset[str]
    given: Mapping[str, Any] = field(default_factory=dict)
    at: str | None = None
    order: int = 0
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
        """The dimension that the rule ranges over; "" if it matches ops."""
        clause = self.source.one(t.MatchDim)
        return "" if clause is None else clause.dim.text

    @cached_property
    def images(self) -> bool:
        """Whether the dimension is the height of an image input."""
        return bool(over_images(self.source))

    @cached_property
    def resize(self) -> t.Assign:
        """`D := keep`."""
        return next(s for r in self.source.all(t.Rewrite) for s in r.steps if _resizes(s, self.dim))

    @cached_property
    def claims(self) -> tuple[t.Claim, ...]:
        return tuple(
            c for e in self.source.all(t.Ensure) for c in e.items if isinstance(c, t.Claim)
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the rule's text: what a certificate names."""
        return hashlib.sha256(self.source.span.text.encode()).hexdigest()

    def message(self, text: str) -> t.Expr:
        """The parsed `{expr}` of a guard message."""
        if text not in self.parsed:
            self.parsed[text] = parse_expression(text)
        return self.parsed[text]


def compile_rule(
    source: t.Rule, args: Mapping[str, Any], at: str | None = None, order: int = 0
) -> Rule:
    """The rule for the engine. Raises where the rule needs parts of the language that have no
    engine yet.
    """
    check_supported(source)
    statements = [s for match in source.all(t.Match) for s in match.patterns]
    if source.one(t.MatchDim) is not None:
        _check_resize(source)
        bare = compile_pattern(())
        return Rule(source, _arguments(source, args), bare, (), frozenset(), dict(args), at, order)
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
    outputs = frozenset(built & set(pattern.produced))
    return Rule(source, _arguments(source, args), pattern, unless, outputs, dict(args), at, order)


def _resizes(step: object, dim: str) -> bool:
    return isinstance(step, t.Assign) and str(step.path) == dim


def _check_resize(source: t.Rule) -> None:
    """Raises R002 for what a rule over dimensions cannot hold."""
    (clause,) = source.all(t.MatchDim)
    steps = [step for r in source.all(t.Rewrite) for step in r.steps]
    moves = [move for p in source.all(t.Perturb) for move in p.moves]
    odd = [s for s in steps if not _resizes(s, clause.dim.text)]
    images = bool(over_images(source))
    odd += [m for m in moves if images or not _masks(m, clause.dim.text)]
    odd += [call for call in _asked_about(source, clause.dim.text) if images]
    odd += list(source.all(t.Match, t.Unless))
    if odd or len(steps) != 1:
        place = Label((odd or [source.name])[0].span, "a rule over dimensions has no place for it")
        hint = "perturb { zero(readers(D), outside = keep) }  rewrite { D := keep }"
        hint = "images have a size and no features: rewrite { R := N }" if images else hint
        raise fail("R002", f"rule `{source.name}` is more than one cut", place, help=hint)


def _asked_about(source: t.Rule, dim: str) -> list[t.Call]:
    """Questions about the features of the dimension: `writers(D)`."""
    calls = [node for node in t.walk(source) if isinstance(node, t.Call) and len(node.args) == 1]
    about = [call for call in calls if call.args[0].span.text == dim]
    return [call for call in about if call.function.span.text in DIM_QUESTIONS]


def _masks(move: object, dim: str) -> bool:
    """`zero(readers(D), outside = keep)`: nothing else is what a cut leaves out."""
    call = move.call if isinstance(move, t.Effect) else None
    if not isinstance(call, t.Call) or not isinstance(call.function, t.Name):
        return False
    asked = " ".join(arg.span.text.replace(" ", "") for arg in call.args)
    named = [keyword.name.text for keyword in call.keywords]
    return (call.function.text, asked, named) == ("zero", f"readers({dim})", ["outside"])


def _unless(clause: t.Unless, known: set[str], first: int) -> tuple[Pattern, tuple[Step, ...]]:
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


_LATER: Sequence[tuple[type, str]] = (
    (t.MatchParam, "matching parameters"),
    (t.MatchValue, "matching values by site"),
    (t.Store, "storing parameters in another form"),
    (t.Attach, "observers"),
    (t.Exit, "exits"),
    (t.Train, "training"),
)


def check_supported(source: t.Rule) -> None:
    """Raises R002 where the rule needs parts of the language that have no engine yet, V004 where a
    guard is left open.
    """
    for hole in holes(source):
        raise fail(
            "V004",
            f"a guard of `{source.name}` is left open",
            Label(hole.span, "when?"),
            help=f"`lissom test {hole.span.source.name}` proposes a condition; write it here",
        )
    for node in t.walk(source):
        for kind, what in _LATER:
            if isinstance(node, kind):
                place = Label(node.span, "needed by this")
                raise fail(
                    "R002",
                    f"rule `{source.name}` needs {what}, which this version cannot apply",
                    place,
                )
