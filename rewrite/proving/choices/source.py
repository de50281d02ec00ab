"""Where random choices come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


class ChoiceSource(ABC):
    """Choices that shrink: towards the lower end, the first item, and no."""

    @abstractmethod
    def integer(self, low: int, high: int) -> int:
        """A whole number, both ends included."""

    def choice(self, items: Sequence[Item]) -> Item:
        return items[self.integer(0, len(items) - 1)]

    def chance(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent


class Unsuitable(Exception):
    """A draw led nowhere (a kernel larger than its image); another one may lead somewhere."""


class Recorded(ChoiceSource):
    """Another source, with every choice written down."""

    def __init__(self, source: ChoiceSource) -> None:
        self.source = source
        self.tape: list[int] = []

    def integer(self, low: int, high: int) -> int:
        self.tape.append(self.source.integer(low, high))
        return self.tape[-1]


class Replayed(ChoiceSource):
    """The choices of a tape once more: the same model, as often as one likes. Past the end of the
    tape, and where a number does not fit, the lower end is taken.
    """

    def __init__(self, tape: Sequence[int]) -> None:
        self._tape = iter(tape)

    def integer(self, low: int, high: int) -> int:
        return min(max(next(self._tape, low), low), high)


class Rolled(ChoiceSource):
    """Choices from a seed: nothing shrinks, but nothing is spent on that either."""

    def __init__(self, seed: int | str) -> None:
        self._random = Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


@dataclass(frozen=True, slots=True)
class Draw:
    """Where the choices of one model come from: a seed, and a tape of which most are taken over."""

    seed: str
    like: tuple[int, ...] | None = None

    def source(self) -> ChoiceSource:
        return Rolled(self.seed) if self.like is None else Varied(self.like, self.seed)


class Varied(ChoiceSource):
    """A tape in which one choice in ten is made anew: a model like another one."""

    def __init__(self, tape: Sequence[int], seed: int | str) -> None:
        self._tape, self._random = iter(tape), Random(seed)

    def integer(self, low: int, high: int) -> int:
        known = next(self._tape, None)
        if known is None or self._random.random() < 0.1:
            return self._random.randint(low, high)
        return min(max(known, low), high)
