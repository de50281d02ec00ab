"""Measured latency of two models, in turns, so that whatever else the machine does slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..graph.runs import interpret, own_inputs, run_model

Clock = Callable[[], float]
Times = dict[fx.Node, float]
T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class Saving:
    """What a change saves, in seconds. before, after: medians of both sides; rounds: what the
    second has less than the first in each round. edges: of conversions that may be joined with what
    lies around, medians, not part of `after`; of these `paid` stays. spared: what neighbours need
    not convert.
    """

    before: float
    after: float
    rounds: tuple[float, ...]
    edges: tuple[float, ...] = ()
    paid: float = 0.0
    spared: float = 0.0

    @property
    def saved(self) -> float:
        return median(self.rounds) - self.paid + self.spared

    @property
    def least(self) -> float:
        """What three of four rounds save at least: where this is greater than 0 the change saves
        more than the measurement varies.
        """
        return least_of(self.rounds) - self.paid + self.spared

    def __str__(self) -> str:
        """`0.42 ms in place of 0.31`."""
        paid = f" and {1e3 * self.paid:.3g} to convert" if self.paid else ""
        spared = f", which spares {1e3 * self.spared:.3g} nearby" if self.spared else ""
        return f"{1e3 * self.after:.3g} ms{paid} in place of {1e3 * self.before:.3g}{spared}"


def saving_of(
    pairs: Sequence[tuple[float, float]], edges: Iterable[Sequence[float]] = ()
) -> Saving:
    """Of the seconds before and after in each round, and those of each edge."""
    was, now = zip(*pairs, strict=True)
    rounds = tuple(before - after for before, after in pairs)
    return Saving(median(was), median(now), rounds, tuple(map(median, edges)))


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
    """Both models in turns (`model_times`)."""
    settings = {"threads": threads, "seconds": seconds, "least": least, "most": most}
    rounds = model_times(before, after, args, **settings, clock=clock)
    times = [before for before, _ in rounds], [after for _, after in rounds]
    return Latency(
        median(times[0]),
        median(times[1]),
        (_spread(times[0]), _spread(times[1])),
        len(rounds),
        batch_of(args),
        threads,
    )


def model_times(
    before: nn.Module,
    after: nn.Module,
    args: tuple[Any, ...],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 200,
    clock: Clock = time.perf_counter,
) -> list[tuple[float, float]]:
    """Runs both models on `args` in turns for about `seconds`, at least `least` times each, which
    bounds what a large first batch costs. The number of threads is set for the measurement and
    restored.
    """
    with threads_set(threads), torch.no_grad():
        for model in (before, after) * 2:
            run_model(model, args)
        turns = [partial(_once, model, args, clock) for model in (before, after)]
        return in_turns(*turns, seconds=seconds, least=least, most=most, clock=clock)


def in_turns(
    first: Callable[[], T],
    second: Callable[[], T],
    *,
    seconds: float,
    least: int = 5,
    most: int = 200,
    clock: Clock = time.perf_counter,
) -> list[tuple[T, T]]:
    """What both give in each round. Each round starts with the other one, so that neither always
    finds warm caches.
    """
    rounds: list[tuple[T, T]] = []
    begun = clock()
    while len(rounds) < least or (len(rounds) < most and clock() - begun < seconds):
        if len(rounds) % 2:
            one = first()
            rounds.append((one, second()))
        else:
            other = second()
            rounds.append((first(), other))
    return rounds


def node_times(
    before: fx.GraphModule,
    after: fx.GraphModule,
    args: tuple[Any, ...],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    clock: Clock = time.perf_counter,
) -> list[tuple[Times, Times]]:
    """Seconds that each node of both graphs takes in each round; both run in turns, as
    `measure_latency` does it.
    """

    def run(module: fx.GraphModule) -> Times:
        timer = _Timer(module, clock)
        interpret(timer, args)
        return timer.times

    with threads_set(threads):
        for module in (before, after) * 2:
            run(module)
        return in_turns(partial(run, before), partial(run, after), seconds=seconds, clock=clock)


class _Timer(fx.Interpreter):
    """Runs a graph and times the calls of its nodes, without what finding their inputs takes."""

    def __init__(self, module: fx.GraphModule, clock: Clock) -> None:
        super().__init__(module)
        self.clock, self.times = clock, Times()

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_function, target, args, kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_method, target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._timed(super().call_module, target, args, kwargs)

    def _timed(self, call: Callable[..., Any], *given: Any) -> Any:
        begun = self.clock()
        value = call(*given)
        self.times[self.at] = self.clock() - begun
        return value


def _once(model: nn.Module, args: tuple[Any, ...], clock: Clock) -> float:
    own = own_inputs(args)  # not timed: a caller needs no copy
    begun = clock()
    model(*own)
    return clock() - begun


def least_of(saved: Iterable[float]) -> float:
    """What at least three of four rounds have."""
    return quantiles(saved, n=4)[0]


def _spread(times: list[float]) -> float:
    low, _, high = quantiles(times, n=4)
    return high - low


def batch_of(args: tuple[Any, ...]) -> int:
    return next((int(a.shape[0]) for a in args if isinstance(a, Tensor) and a.dim()), 1)


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
