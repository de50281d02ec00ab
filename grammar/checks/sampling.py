"""Instances of a rule: sizes and attributes for which its patterns and its known guards hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..algebra.substitution import evaluate
from ..algebra.symbolic import Poly
from ..tree import clauses
from ..tree import tree as t
from .shapes import ShapeModel
from .truth import Sample, Truth

TRIES = 400
"""How many drawings are made to find instances; a file with many rules gets fewer for each."""

WANTED = 40
_SMALL = (0, 1, 1, 2, 2, 3, 4)
_LARGE = (5, 7, 8, 16, 32, 64, 128, 256)


@dataclass(slots=True)
class Sampler:
    """Draws instances with a fixed seed, so that a file always gets the same findings."""

    model: ShapeModel
    guards: tuple[t.Expr, ...]
    tries: int = TRIES
    truth: Truth = field(init=False)
    symbols: list[str] = field(init=False)
    pool: list[int] = field(init=False)
    negative: list[int] = field(init=False)
    extents: list[Poly] = field(init=False)
    zeros: list[Poly] = field(init=False)
    drawn: list[Sample] | None = None

    def __post_init__(self) -> None:
        solver = self.model.solver
        self.truth = Truth(self.model.terms)
        self.symbols = [name for name in solver.lows if name not in solver.values]
        self.pool = sorted({*_LARGE, *_constants(self.guards)})
        self.negative = _negative(self.guards)
        self.extents = _extents(self.model)
        self.zeros = [solver.resolve(poly) for poly in solver.assumed]

    def instances(self) -> list[Sample]:
        """Some instances that satisfy the patterns and no guard denies. The list may be empty."""
        if self.drawn is None:
            self.drawn = list(self._draw())
        return self.drawn

    def _draw(self) -> Iterator[Sample]:
        source, found = random.Random(0), 0
        for attempt in range(self.tries):
            sample = {name: self._pick(source, name, attempt) for name in self.symbols}
            if self.fits(sample):
                found += 1
                yield sample
            if found == WANTED:
                return

    def _pick(self, source: random.Random, name: str, attempt: int) -> float:
        """Small numbers often, numbers near the guards' constants sometimes."""
        if name in self.model.reals:
            return source.choice((self.model.reals[name], 0.1, 0.5, 0.9))
        low = self.model.solver.lows[name]
        if name in self.model.flags:
            return source.choice((0, 1))
        if low == 0:
            return source.choice((0, 0, 1, 2, *self.negative))
        large = source.random() < (0.3, 0.5, 0.8, 0.1)[attempt % 4]
        return max(low, source.choice(self.pool if large else _SMALL))

    def fits(self, sample: Sample) -> bool:
        """Whether the sample is an instance: positive extents, equations, no false guard."""
        return self.possible(sample) and all(
            self.truth.holds(guard, sample) is not False for guard in self.guards
        )

    def possible(self, sample: Sample) -> bool:
        try:
            return all(number(poly, sample) == 0 for poly in self.zeros) and all(
                number(poly, sample) >= 1 for poly in self.extents
            )
        except ZeroDivisionError:
            return False

    def smallest(
        self, sample: Sample, wrong: Callable[[Sample], bool], names: Iterable[str]
    ) -> dict[str, float]:
        """Lower one symbol after the other as long as the sample stays a counterexample."""
        best, names = dict(sample), sorted(names)
        changed = True
        while changed:
            changed = False
            for name in names:
                changed |= self._lower(best, name, wrong)
        return best

    def _lower(self, best: dict[str, float], name: str, wrong: Callable[[Sample], bool]) -> bool:
        if name in self.model.reals or name not in best:
            return False
        start = int(best[name])
        for smaller in range(self.model.solver.lows.get(name, 1), min(start, 40)):
            trial = {**best, name: smaller}
            if self.fits(trial) and wrong(trial):
                best[name] = smaller
                return True
        return False


def number(poly: Poly, sample: Sample) -> float:
    return evaluate(poly, sample)  # type: ignore[arg-type, return-value]


def _extents(model: ShapeModel) -> list[Poly]:
    """The sizes of the left side that are more than one symbol: they must come out positive."""
    found: dict[Poly, None] = {}
    axes = (axis for shape in model.before.values() for axis in model.solver.shape(shape))
    for axis in axes:
        if isinstance(axis, Poly) and axis.constant is None and len(axis.terms) > 1:
            found[axis] = None
    values = [model.solver.resolve(poly) for poly in model.solver.values.values()]
    return [*found, *(v for v in values if not v.symbols and v.constant is None)]


def _constants(conditions: Iterable[t.Expr]) -> set[int]:
    """The integers in the guards and their neighbours: where a guard changes its mind."""
    found: set[int] = set()
    numbers = (n for c in conditions for n in t.walk(c) if isinstance(n, t.Number))
    for value in (n.value for n in numbers):
        if isinstance(value, int) and value < 1 << 20:
            found |= {value - 1, value, value + 1, 2 * value}
    return {n for n in found if n > 0}


def _negative(conditions: Iterable[t.Expr]) -> list[int]:
    """The negative integers in the guards, which attributes such as `dim` may be compared with."""
    signs = (n for c in conditions for n in t.walk(c) if isinstance(n, t.Unary) and n.op == "-")
    numbers = [n.operand.value for n in signs if isinstance(n.operand, t.Number)]
    return [-n for n in numbers if isinstance(n, int)][:4]


def guards_of(rule: t.Rule) -> tuple[t.Expr, ...]:
    return tuple(guard.condition for guard in clauses.guards(rule))
