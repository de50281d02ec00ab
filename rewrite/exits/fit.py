"""Thresholds from data: at which score samples may leave, so that what is asked holds.

Each batch runs once through all bodies and heads; which samples leave where, and what a metric says
then, follows for any thresholds from what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.runs import own_inputs
from ..runtime.exits import EarlyExit, ExitTest
from ..torch_internals import tree_leaves

LEVELS = 64
"""Thresholds that are tried for each exit: quantiles of its scores."""

SWEEPS = 2
"""How often the exits are gone through one after another."""


@dataclass(frozen=True, slots=True)
class BatchSeen:
    """What a network gives for one batch at each depth: logits [N, C], and the score [N] of each
    exit. args: the inputs, by which the batch is known.
    """

    args: tuple[Any, ...]
    logits: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]

    def left(self, tests: Sequence[ExitTest]) -> Tensor:
        """The depth, from 0, at which each sample leaves: int64 [N]."""
        found = torch.full((len(self.logits[-1]),), len(tests))
        for at in reversed(range(len(tests))):
            found[tests[at](self.scores[at])] = at
        return found

    def chosen(self, depths: Tensor) -> Tensor:
        """The logits of each sample at its depth."""
        return torch.stack(self.logits)[depths, torch.arange(len(depths))]


def seen(network: EarlyExit, batches: Sequence[tuple[Any, ...]]) -> list[BatchSeen]:
    with torch.no_grad():
        return [BatchSeen(args, *network.everywhere(*own_inputs(args))) for args in batches]


class Replay(nn.Module):
    """Answers for batches that were seen, as the network would with these thresholds; runs it for
    any other.
    """

    def __init__(self, network: EarlyExit, batches: Sequence[BatchSeen], tests: Sequence[ExitTest]):
        super().__init__()
        self.network, self.batches, self.tests = network, batches, list(tests)
        self.next = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = None if kwargs else self._known(args)
        if found is None:
            self.network.tests = list(self.tests)
            return self.network(*args, **kwargs)
        return self.network.outputs(found.chosen(found.left(self.tests)))

    def _known(self, args: tuple[Any, ...]) -> BatchSeen | None:
        """The next batch in order, if it is this one."""
        one = self.batches[self.next % len(self.batches)]
        given, known = tree_leaves(args), tree_leaves(one.args)
        if len(given) != len(known) or not all(map(_same, given, known)):
            return None
        self.next += 1
        return one


def _same(given: Any, known: Any) -> bool:
    if not isinstance(given, Tensor) or not isinstance(known, Tensor):
        return given is known or given == known
    return given.shape == known.shape and torch.equal(given, known)


@dataclass(frozen=True, slots=True)
class Choice:
    """Thresholds, and what follows from them. shares: of all samples, those that leave at each
    depth; macs: on average, at the example's batch; holds: what was asked; score: the metric.
    """

    tests: tuple[ExitTest, ...]
    shares: tuple[float, ...]
    macs: float
    holds: bool
    score: float


@dataclass
class Fit:
    """Looks for thresholds. costs: multiply-accumulates up to each depth; judge: whether what is
    asked holds of a model with these costs, and its metric; by_score: the best metric, not the
    least costs, among those for which it does.
    """

    network: EarlyExit
    batches: Sequence[BatchSeen]
    costs: Sequence[float]
    judge: Callable[[nn.Module, float, Sequence[float]], tuple[bool, float]]
    by_score: bool
    tried: list[Choice] = field(default_factory=list)

    def run(self) -> Choice | None:
        """The best thresholds; None where there are none. First all exits get the same share of
        their levels, then one after another a level of its own.
        """
        levels = [self._levels(at) for at in range(len(self.network.tests))]
        shared = [self._choice([own[step] for own in levels]) for step in range(LEVELS + 1)]
        best = self._best(shared)
        for _ in range(SWEEPS if best else 0):
            for at, own in enumerate(levels):
                assert best is not None
                others = [self._choice(list(_with(best.tests, at, test))) for test in own]
                best = self._best([best, *others])
        return best

    def _levels(self, at: int) -> list[ExitTest]:
        """From all samples to none."""
        known = self.network.tests[at]
        scores = torch.cat([batch.scores[at] for batch in self.batches]).double().sort().values
        scores = scores[~scores.isnan()]
        if not len(scores):  # nothing is known of what leaves
            return [known] * (LEVELS + 1)
        scores = scores[torch.linspace(0, len(scores) - 1, LEVELS).round().long()]
        below, above = float(scores[0]) - 1, float(scores[-1]) + 1
        upwards = [below, *scores.tolist(), above]
        strict = known.test in (">", "<")  # no score exceeds the largest one
        found = upwards if ">" in known.test else upwards[::-1]
        found = found[:-1] if strict else found[1:]
        return [ExitTest(known.test, value, known.counts) for value in found]

    def _choice(self, tests: Sequence[ExitTest]) -> Choice:
        depths = torch.cat([batch.left(tests) for batch in self.batches])
        counts = depths.bincount(minlength=len(self.costs)).tolist()
        shares = tuple(count / len(depths) for count in counts)
        macs = sum(share * cost for share, cost in zip(shares, self.costs, strict=True))
        model = Replay(self.network, self.batches, tests)
        choice = Choice(tuple(tests), shares, macs, *self.judge(model, macs, shares))
        self.tried.append(choice)
        return choice

    def _best(self, choices: Sequence[Choice]) -> Choice | None:
        held = [choice for choice in choices if choice.holds]
        return max(held, key=self._rank, default=None)

    def _rank(self, choice: Choice) -> tuple[float, float]:
        return (choice.score, -choice.macs) if self.by_score else (-choice.macs, choice.score)

    def frontier(self) -> Iterator[Choice]:
        """Of all that was tried, what no other one beats in costs and metric, cheapest first."""
        best = float("-inf")
        for choice in sorted(self.tried, key=lambda c: (c.macs, -c.score)):
            if choice.score > best:
                best = choice.score
                yield choice


def _with(tests: Sequence[ExitTest], at: int, test: ExitTest) -> Iterator[ExitTest]:
    return (test if number == at else own for number, own in enumerate(tests))
