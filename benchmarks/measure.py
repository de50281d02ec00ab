"""Timing of contestants against each other: CPU seconds, interleaved rounds, medians, ratios."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contestant:
    """One tool on one task. Only `run` is timed; `check` looks at what it gave and may raise."""

    name: str
    prepare: Callable[[], Any]
    run: Callable[[Any], Any]
    check: Callable[[Any], None] = lambda result: None
    most_rounds: int = 1000


@dataclass
class Times:
    """CPU seconds of each contestant, round by round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, other: str, ours: str) -> float:
        """The median over rounds of other / ours; who ran fewer rounds stands in with its last."""
        theirs, own = self.seconds[other], self.seconds[ours]
        rounds = max(len(theirs), len(own))
        return statistics.median(_at(theirs, i) / _at(own, i) for i in range(rounds))


def _at(values: Sequence[float], index: int) -> float:
    return values[min(index, len(values) - 1)]


def race(contestants: Sequence[Contestant], rounds: int) -> Times:
    """Runs everybody once per round, each round starting with another contestant."""
    times = Times({one.name: [] for one in contestants})
    for number in range(rounds):
        shift = number % len(contestants)
        for one in (*contestants[shift:], *contestants[:shift]):
            if number < one.most_rounds:
                times.seconds[one.name].append(cpu_seconds(one))
    return times


def cpu_seconds(one: Contestant) -> float:
    """CPU seconds of one run of this process, all threads. Garbage of others is collected first."""
    given = one.prepare()
    gc.collect()
    begun = time.process_time()
    result = one.run(given)
    seconds = time.process_time() - begun
    one.check(result)
    return seconds


def exponent(seconds_by_size: Mapping[int, float]) -> float:
    """The slope of log(seconds) over log(size), by least squares; NaN for fewer than two sizes."""
    if len(seconds_by_size) < 2:
        return math.nan
    xs = [math.log(size) for size in seconds_by_size]
    ys = [math.log(seconds) for seconds in seconds_by_size.values()]
    return statistics.linear_regression(xs, ys).slope
