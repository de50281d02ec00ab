"""Measured latency of two models, in turns, so that whatever else the machine does slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.runs import own_inputs, run_model

Clock = Callable[[], float]

TURNS = 0.5
"""Seconds for which both models take turns when a condition asks for a latency."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians of `rounds` runs, in seconds for one batch; `spread` are interquartile ranges."""

    before: float
    after: float
    spread: tuple[float, float]
    rounds: int
    batch: int
    threads: int
    runtime: str = "torch eager"

    @property
    def how(self) -> str:
        """What the numbers depend on, in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        spread = " and ".join(f"{1e3 * seconds:.2g}" for seconds in self.spread)
        medians = f"median of {self.rounds} (quartiles {spread} ms apart)"
        return f"{medians}, {threads}, {self.runtime}, batch {self.batch}"


def measure_latency(
    before: nn.Module,
    after: nn.Module,
    args: tuple[Any, ...],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 200,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Runs both models on `args` in turns for about `seconds`, at least `least` times each, which
    bounds what a large first batch costs.

    Each round starts with the other model, so that neither always finds warm caches. The number of
    threads is set for the measurement and restored.
    """
    times: tuple[list[float], list[float]] = ([], [])
    with _threads(threads), torch.no_grad():
        for model in (before, after) * 2:
            run_model(model, args)
        begun = clock()
        while len(times[0]) < least or (len(times[0]) < most and clock() - begun < seconds):
            turn = ((before, times[0]), (after, times[1]))
            for model, kept in turn if len(times[0]) % 2 else reversed(turn):
                kept.append(_once(model, args, clock))
    return Latency(
        median(times[0]),
        median(times[1]),
        (_spread(times[0]), _spread(times[1])),
        len(times[0]),
        _batch(args),
        threads,
    )


def _once(model: nn.Module, args: tuple[Any, ...], clock: Clock) -> float:
    own = own_inputs(args)  # not timed: a caller needs no copy
    begun = clock()
    model(*own)
    return clock() - begun


def _spread(times: list[float]) -> float:
    low, _, high = quantiles(times, n=4)
    return high - low


def _batch(args: tuple[Any, ...]) -> int:
    return next((int(a.shape[0]) for a in args if isinstance(a, Tensor) and a.dim()), 1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
