"""The simplest conditions that keep a rule away from the sites where its sides differ.

Sites are bits of whole numbers, so that a conjunction of conditions is one `&`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations

from ...rules.scope import Scope
from .predicates import Predicate, predicate

MOST = 4
"""Conditions that one proposal has at most."""

BEAM = 40
"""Beginnings of a proposal that are continued, past pairs: every pair is tried."""

WORTH = 0.03
"""Agreeing sites, as a share of all, that a simpler proposal may give up. A few sites agree by
chance (a shift of zero, say), and what tells exactly those apart is no reason.
"""

WIDER = 0.1
"""The same share, that an `or` must add."""

LEAST = 0.2
"""Agreeing sites, as a share of all, that a proposal keeps: some conditions exclude the bad sites
because they exclude nearly everything.
"""


@dataclass(frozen=True, slots=True)
class ConditionColumn:
    """One condition at all sites: where it holds, where it does not, where it has no value."""

    predicate: Predicate
    true: int
    false: int
    lost: int

    @property
    def text(self) -> str:
        return self.predicate.text

    @property
    def cost(self) -> int:
        return self.predicate.cost


@dataclass(frozen=True, slots=True)
class Conjunction:
    """Conditions in the order in which they are asked; no later one fails to have a value."""

    columns: tuple[ConditionColumn, ...]
    kept: int

    @property
    def text(self) -> str:
        return "; ".join(column.text for column in self.columns)

    @property
    def cost(self) -> int:
        """A further condition costs more than a longer one."""
        return sum(column.cost + 1 for column in self.columns)


class SiteTable:
    """Conditions against sites. good, bad: where both sides agree, and where they differ; the other
    sites have conditions that are asked, but decide nothing.
    """

    def __init__(self, columns: Iterable[ConditionColumn], good: int, bad: int, sites: int) -> None:
        self.columns, self.good, self.bad, self.sites = tuple(columns), good, bad, sites

    @cached_property
    def useful(self) -> list[ConditionColumn]:
        """The simplest of those conditions that exclude and keep the same sites."""
        found: dict[tuple[int, int, int], ConditionColumn] = {}
        for column in sorted(self.columns, key=lambda c: (c.cost, len(c.text))):
            if column.false & self.bad and column.true & self.good:
                sites = column.false & self.bad, column.true & self.good, column.lost
                found.setdefault(sites, column)
        return list(found.values())

    def best(self) -> Conjunction | None:
        """Excludes every bad site; of such the simplest, among those that keep about as many good
        sites as any.
        """
        found = list(self._sufficient())
        if not found:
            return None
        most = max(c.kept.bit_count() for c in found)
        total = self.good.bit_count()
        if most < max(1, LEAST * total):
            return None
        near = [c for c in found if c.kept.bit_count() >= most - WORTH * total]
        return min(near, key=lambda c: (c.cost, -c.kept.bit_count(), len(c.text)))

    def _sufficient(self) -> Iterator[Conjunction]:
        """Every single condition and every pair that will do, and what a beam search finds."""
        for count in (1, 2):
            yield from filter(None, map(self._joined, combinations(self.useful, count)))
        begun: list[tuple[ConditionColumn, ...]] = sorted(
            combinations(self.useful, 2), key=self.far
        )
        for _ in range(MOST - 2):
            longer = [(*c, more) for c in begun[:BEAM] for more in self.useful if more not in c]
            distinct = {frozenset(column.text for column in c): c for c in longer}
            begun = sorted(distinct.values(), key=self.far)
            yield from filter(None, map(self._joined, begun))

    def far(self, columns: Sequence[ConditionColumn]) -> float:
        """How far from a good proposal: bad sites that are left, and good ones that are lost."""
        left, kept = self.bad, self.good
        for column in columns:
            left &= ~column.false
            kept &= column.true
        lost = self.good.bit_count() - kept.bit_count()
        return left.bit_count() / self.bad.bit_count() + lost / self.good.bit_count()

    def _joined(self, columns: Sequence[ConditionColumn]) -> Conjunction | None:
        """The conjunction, if it excludes every bad site and keeps a good one."""
        false = 0
        for column in columns:
            false |= column.false
        if self.bad & ~false or not self.good & ~false:
            return None
        return next(filter(None, map(self._asked, permutations(columns))), None)

    def _asked(self, columns: Sequence[ConditionColumn]) -> Conjunction | None:
        """In this order, if each has a value wherever those before it hold."""
        live = self.sites
        for column in columns:
            if live & column.lost:
                return None
            live &= column.true
        return Conjunction(tuple(columns), live & self.good)

    # -- alternatives

    def wider(self, found: Conjunction) -> Conjunction | None:
        """With `or` in one condition, where that keeps many more good sites: the simplest of those
        that keep about as many as any.
        """
        total = self.good.bit_count()
        wanted = found.kept.bit_count() + max(3, WIDER * total)
        wider = [c for c in self._alternatives(found) if c.kept.bit_count() >= wanted]
        most = max((c.kept.bit_count() for c in wider), default=0)
        near = [c for c in wider if c.kept.bit_count() >= most - WORTH * total]
        return min(near, key=lambda c: (c.cost, -c.kept.bit_count(), len(c.text)), default=None)

    def same(self, found: Conjunction) -> Conjunction | None:
        """The conditions of another table, if they exclude every bad site of this one too."""
        known = {column.text: column for column in self.columns}
        columns = [known[c.text] for c in found.columns if c.text in known]
        return self._joined(columns) if len(columns) == len(found.columns) else None

    def _alternatives(self, found: Conjunction) -> Iterator[Conjunction]:
        for number, column in enumerate(found.columns):
            for other in self.columns:
                parts = [*found.columns]
                parts[number] = _either(column, other)
                joined = self._joined(parts) if other.true & self.good & ~found.kept else None
                if joined is not None:
                    yield joined

    # -- what comes near

    def near(self, column: ConditionColumn) -> bool:
        """Whether a condition excludes some bad sites, and keeps most of the good ones."""
        excluded = (column.false & self.bad).bit_count()
        kept = (column.true & self.good).bit_count()
        return 5 * excluded >= self.bad.bit_count() and 2 * kept >= self.good.bit_count()

    def apart(self, one: int, other: int) -> int:
        """How many conditions tell two sites apart."""
        return sum(
            (c.true >> one ^ c.true >> other) & 1 or (c.false >> one ^ c.false >> other) & 1
            for c in self.columns
        )


def column_of(asked: Predicate, scopes: Sequence[Scope]) -> ConditionColumn:
    true = false = lost = 0
    for site, scope in enumerate(scopes):
        held = asked.holds(scope)
        true |= (held is True) << site
        false |= (held is False) << site
        lost |= (held is None) << site
    return ConditionColumn(asked, true, false, lost)


def _either(first: ConditionColumn, second: ConditionColumn) -> ConditionColumn:
    """`first or second`: the second is asked where the first does not hold."""
    cost = first.cost + second.cost + 1
    asked = predicate(f"{first.text} or {second.text}", cost)
    lost = first.lost | first.false & second.lost
    true = first.true | first.false & second.true
    return ConditionColumn(asked, true, first.false & second.false, lost)
