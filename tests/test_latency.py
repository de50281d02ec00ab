"""Latency is measured in turns, with the clock that is given, and named for what it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lissom.rewrite.measure.latency import measure_latency


class Ticking(nn.Module):
    """Takes as long as it says, on a clock of its own."""

    def __init__(self, clock: list[float], seconds: float, log: list[float]) -> None:
        super().__init__()
        self.clock, self.seconds, self.log = clock, seconds, log

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += self.seconds
        self.log.append(self.seconds)
        return x


def test_medians_of_both_models_in_turns() -> None:
    clock, log = [0.0], []
    slow, fast = Ticking(clock, 2.0, log), Ticking(clock, 0.5, log)
    found = measure_latency(
        slow, fast, (torch.rand(7, 2),), least=5, seconds=0.0, clock=lambda: clock[0]
    )
    assert (found.before, found.after, found.rounds, found.batch) == (2.0, 0.5, 5, 7)
    rounds = log[4:]  # behind two warm-up runs of each
    pairs = [sorted(rounds[i : i + 2]) for i in range(0, len(rounds), 2)]
    assert pairs == [[0.5, 2.0]] * 5
    assert rounds[0] != rounds[2]


def test_time_ends_the_measurement() -> None:
    clock, log = [0.0], []
    models = Ticking(clock, 1.0, log), Ticking(clock, 1.0, log)
    found = measure_latency(
        *models, (torch.rand(1),), least=3, seconds=19.5, clock=lambda: clock[0]
    )
    assert found.rounds == 10


def test_threads_are_named_and_restored() -> None:
    threads = torch.get_num_threads()
    seen = []

    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
            return x

    found = measure_latency(Looking(), Looking(), (torch.rand(3),), least=2, most=2, threads=1)
    assert set(seen) == {(1, False)}
    assert torch.get_num_threads() == threads
    assert found.how.startswith("median of 2 (quartiles ")
    assert found.how.endswith("ms apart), 1 thread, torch eager, batch 3")
