"""Measured latency of two models, in turns, so that whatever else the machine does slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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
    with threads_set(threads), torch.no_grad():
        for model in (before, after) * 2:
            run_model(model, args)
        turns = [partial(_once, model, args, clock) for model in (before, after)]
        rounds = in_turns(*turns, seconds=seconds, least=least, most=most, clock=clock)
    times = [before for before, _ in rounds], [after for _, after in rounds]
    return Latency(
        median(times[0]),
        median(times[1]),
        (_spread(times[0]), _spread(times[1])),
        len(times[0]),
        batch_of(args),
        threads,
    )


def in_turns(
    first: Callable[[], T],
    second: Callable[[], T],
    *,
    seconds: float,
    least: int = 5,
    most: int = 200,
    clock: Clock = time.perf_counter,
) -> list[tuple[T, T]]:
    """What both give in each round; each round starts with the other one."""
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


def is_faster(rounds: Iterable[tuple[float, float]]) -> bool:
    """Whether the second of both took less time in three of four rounds: what is as fast is not,
    and neither is what only one slow round of the other makes look so.
    """
    saved = [first - second for first, second in rounds]
    return quantiles(saved, n=4)[0] > 0


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
