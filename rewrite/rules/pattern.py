"""A rule's left side, compiled once: which ops, how they hang together, and in which order to look
for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t


@dataclass(frozen=True, slots=True)
class PatternOp:
    """One line `y = conv2d(x, groups = 1) as c`. `ops` is None where any op will do."""

    index: int
    source: t.OpPattern
    ops: frozenset[str] | None
    targets: tuple[str, ...]
    operands: tuple[t.Expr | t.Rest, ...]
    reads: tuple[str, ...]

    @property
    def repeat(self) -> str:
        return self.source.repeat

    @property
    def fixed(self) -> bool:
        """Whether exactly one node matches it."""
        return not self.source.repeat


@dataclass(frozen=True, slots=True)
class MatchStep:
    """How to reach one pattern op from those already bound."""

    op: PatternOp
    how: Literal["anchor", "producer", "consumer"]
    via: str = ""


@dataclass(frozen=True, slots=True)
class Pattern:
    """The statements of one `match` or `unless` block. `shared` are the numbers of the ops that may
    have readers outside the match, and stay.
    """

    ops: tuple[PatternOp, ...]
    shapes: tuple[t.ShapePattern, ...]
    sites: tuple[t.SitePattern, ...]
    produced: Mapping[str, PatternOp]
    shared: tuple[int, ...]
    _orders: dict[int, tuple[MatchStep, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def anchors(self) -> list[PatternOp]:
        """Ops that a search can start from, in textual order."""
        return [op for op in self.ops if op.fixed]

    @property
    def chains(self) -> Mapping[str, PatternOp]:
        """Ops that may be absent, or there several times, by what `as c` calls them."""
        return {op.source.handle.text: op for op in self.ops if op.repeat and op.source.handle}

    def order(self, anchor: PatternOp) -> tuple[MatchStep, ...]:
        """The steps that bind every op, starting at `anchor`; computed once."""
        if anchor.index not in self._orders:
            self._orders[anchor.index] = tuple(_order(self, [MatchStep(anchor, "anchor")]))
        return self._orders[anchor.index]

    @property
    def reach(self) -> int:
        """How many edges away from the anchor a matched node can be (chains counted as one)."""
        return len(self.ops)


def compile_pattern(statements: Sequence[t.Pattern], first: int = 0) -> Pattern:
    """The pattern of a block; its ops are numbered from `first`, so that blocks of a rule do not
    collide.
    """
    sources = [s for s in statements if isinstance(s, t.OpPattern)]
    ops = tuple(_compile_op(index, source) for index, source in enumerate(sources, start=first))
    produced = {target: op for op in ops for target in op.targets}
    shapes = tuple(s for s in statements if isinstance(s, t.ShapePattern))
    sites = tuple(s for s in statements if isinstance(s, t.SitePattern))
    shared = tuple(op.index for op in ops if op.source.shared)
    return Pattern(ops, shapes, sites, produced, shared)


def _compile_op(index: int, source: t.OpPattern) -> PatternOp:
    names = frozenset(word.text for word in source.ops.names)
    reads = tuple(o.text for o in source.operands if isinstance(o, t.Name) and o.text != "_")
    targets = tuple(word.text for word in source.targets)
    return PatternOp(
        index, source, None if "_" in names else names, targets, source.operands, reads
    )


def steps_from(pattern: Pattern, bound: Iterable[str]) -> list[MatchStep]:
    """The steps that bind every op when the values in `bound` are known already."""
    return _order(pattern, [], set(bound))


def _order(
    pattern: Pattern, steps: list[MatchStep], bound: set[str] | None = None
) -> list[MatchStep]:
    values = set(bound or ())
    for step in steps:
        values.update(step.op.targets, step.op.reads)
    while len(steps) < len(pattern.ops):
        step = _next_step(pattern, {step.op.index for step in steps}, values)
        steps.append(step)
        values.update(step.op.targets, step.op.reads)
    return steps


def _next_step(pattern: Pattern, done: set[int], values: set[str]) -> MatchStep:
    """Producers first: a value has one producer but any number of readers."""
    waiting = [op for op in pattern.ops if op.index not in done]
    for op in waiting:
        via = next((name for name in op.targets if name in values), None)
        if via:
            return MatchStep(op, "producer", via)
    for op in waiting:
        known = [name for name in op.reads if name in values]
        if known:
            # A value made inside the pattern has few readers; an input of it may have any number.
            inner = next((name for name in known if name in pattern.produced), known[0])
            return MatchStep(op, "consumer", inner)
    place = Label(waiting[0].source.span, "shares no value with the ops above")
    raise fail("P001", "the pattern is not connected", place)
