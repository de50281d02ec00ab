"""Early exits: how sure a head is, and a network whose samples leave where they may.

A network with exits is cut into bodies, each with a head behind it but the last. A batch runs
through a body; samples whose head is sure enough leave with its answer, and only the others go on.
BranchyNet (Teerapittayanon et al. 2016, arXiv:1709.01686); patience: Zhou et al. 2020,
arXiv:2006.04152.
"""

from __future__ import annotations

import operator
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def confidence(logits: Tensor) -> Tensor:
    """The largest probability of each sample: `[N, C]` to `[N]`, 1/C..1."""
    return logits.softmax(-1).amax(-1)


def entropy(logits: Tensor) -> Tensor:
    """The entropy of the probabilities of each sample in nats: `[N, C]` to `[N]`, 0..log C."""
    return -(logits.log_softmax(-1) * logits.softmax(-1)).sum(-1)


def margin(logits: Tensor) -> Tensor:
    """By how much the largest probability exceeds the next one: `[N, C]` to `[N]`, 0..1."""
    first, second = logits.softmax(-1).topk(2, -1).values.unbind(-1)
    return first - second


def agreement(logits: Tensor) -> Tensor:
    """How many exits in a row, up to this one, name the same class: `[N, C]` to `[N]`. Of a head
    alone that is 1; `EarlyExit` knows those in front of it.
    """
    return torch.ones_like(logits[..., 0])


TESTS: dict[str, Callable[[Any, float], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def exit_at(value: Tensor, logits: Tensor, score: Tensor, test: str, limit: float) -> Tensor:
    """The value itself: where a network has an exit. A sample leaves here with its logits if its
    score passes the test, which `EarlyExit` asks; a network that is run as one asks nothing.
    """
    return value


@dataclass
class ExitTest:
    """When a sample leaves: `score > threshold`. counts: the score is the number of exits that
    agree.
    """

    test: str
    threshold: float
    counts: bool = False

    def __call__(self, score: Tensor) -> Tensor:
        """Which samples leave: bool [N]. A score that is no number keeps its sample."""
        return TESTS[self.test](score, self.threshold)


Answered = tuple[Tensor | None, Tensor, int]
"""Samples that left: which they are (None: all), with what, and at which exit."""


@dataclass
class _Waiting:
    """The samples of a batch that have not left. rows: which these are, None for all; named, streak
    [n]: the class that the last exit named, and how many in a row did.
    """

    values: tuple[Any, ...]
    rows: Tensor | None = None
    named: Tensor | None = None
    streak: Tensor | None = None

    def agree(self, logits: Tensor) -> Tensor:
        """How many exits in a row name the class that this one does."""
        named = logits.argmax(-1)
        same = torch.zeros_like(named) if self.named is None else (named == self.named).long()
        self.streak = same * (0 if self.streak is None else self.streak) + 1
        self.named = named
        return self.streak

    def keep(self, stay: Tensor, by_row: Sequence[bool]) -> None:
        """Only `stay` [n] of more samples are still there: rows of what holds a row for each."""
        pairs = zip(self.values, by_row, strict=True)
        self.values = tuple(_rows_of(v, stay) if rows else v for v, rows in pairs)
        self.rows = stay if self.rows is None else self.rows[stay]
        if self.streak is not None and self.named is not None:
            self.streak, self.named = self.streak[stay], self.named[stay]


class EarlyExit(nn.Module):
    """A network with exits.

    bodies[k] takes what bodies[k - 1] gave, the first one the inputs of the model; heads[k] takes
    what bodies[k] gave and returns logits and a score. The last body gives the output tensor, which
    `outputs` puts in the form of the model's outputs; plain: that is the tensor itself. by_row[k]:
    which values between bodies k and k + 1 hold a row for each sample.

    `exits = False` runs the network as one, to the bit. `depth = k` takes exit k for all samples,
    counted from 1; the last depth is the output. `forward(..., budget = ms)` takes the deepest exit
    that `times` allows, `forward(..., return_exit = True)` also returns where each sample left.
    """

    def __init__(
        self,
        bodies: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        outputs: nn.Module,
        tests: Sequence[ExitTest],
        by_row: Sequence[Sequence[bool]],
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.bodies, self.heads = nn.ModuleList(bodies), nn.ModuleList(heads)
        self.outputs, self.plain = outputs, plain
        self.tests, self.by_row = list(tests), [tuple(rows) for rows in by_row]
        self.exits, self.depth = True, None
        self.times: dict[int, list[float]] = {}

    @property
    def depth(self) -> int | None:
        """The exit that all samples take; None where each takes its own."""
        return self._depth

    @depth.setter
    def depth(self, depth: int | None) -> None:
        if depth is not None and not 1 <= depth <= len(self.bodies):
            raise ValueError(f"depth is 1 to {len(self.bodies)}, or None; not {depth}")
        self._depth = depth

    @property
    def thresholds(self) -> list[float]:
        """That of each exit."""
        return [test.threshold for test in self.tests]

    @thresholds.setter
    def thresholds(self, values: Sequence[float]) -> None:
        if len(values) != len(self.tests):
            raise ValueError(f"{len(self.tests)} exits have {len(self.tests)} thresholds")
        for test, value in zip(self.tests, values, strict=True):
            test.threshold = float(value)

    def forward(
        self, *args: Any, budget: float | None = None, return_exit: bool = False, **kwargs: Any
    ) -> Any:
        """The outputs of the model. budget: milliseconds; return_exit: with the exit of each
        sample, int64 [N], counted from 1.
        """
        depth = self._depth if budget is None else self._affordable(budget, args, kwargs)
        if depth is None and not self.exits:
            depth = len(self.bodies)
        if depth is None:
            parts = self._run(args, kwargs)
        else:
            parts = [(None, self.by_hand(depth, args, kwargs), depth)]
        found, order = _together(parts)
        outputs = found if self.plain else _given(self.outputs, found)
        return (outputs, _exits_of(parts, order)) if return_exit else outputs

    def by_hand(self, depth: int, args: Any, kwargs: Any) -> Tensor:
        """What all samples get at one exit; no other head runs."""
        values = _given(self.bodies[0], *args, **kwargs)
        for body in self.bodies[1:depth]:
            values = _given(body, *values)
        return values if depth == len(self.bodies) else _given(self.heads[depth - 1], *values)[0]

    def everywhere(self, *args: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What all samples get at each depth, logits `[N, C]`, and the score `[N]` of each exit."""
        waiting = _Waiting(_given(self.bodies[0], *args))
        logits: list[Any] = []
        scores: list[Tensor] = []
        for at, head in enumerate(self.heads):
            found, score = _given(head, *waiting.values)
            logits.append(found)
            scores.append(waiting.agree(found) if self.tests[at].counts else score)
            waiting.values = _given(self.bodies[at + 1], *waiting.values)
        logits.append(waiting.values)
        return tuple(logits), tuple(scores)

    def _run(self, args: Any, kwargs: Any) -> list[Answered]:
        waiting = _Waiting(_given(self.bodies[0], *args, **kwargs))
        parts: list[Answered] = []
        for at, head in enumerate(self.heads):
            logits, score = _given(head, *waiting.values)
            test = self.tests[at]
            leaves = test(waiting.agree(logits) if test.counts else score)
            count = int(leaves if len(leaves) == 1 else leaves.sum())
            if count == len(leaves):
                return [*parts, (waiting.rows, logits, at + 1)]
            if count:
                gone = leaves.nonzero().squeeze(1)
                rows = gone if waiting.rows is None else waiting.rows[gone]
                parts.append((rows, logits[gone], at + 1))
                waiting.keep((~leaves).nonzero().squeeze(1), self.by_row[at])
            waiting.values = _given(self.bodies[at + 1], *waiting.values)
        last: Any = waiting.values  # the last body gives a tensor
        return [*parts, (waiting.rows, last, len(self.bodies))]

    # -- time --------------------------------------------------------------------------------------

    def measure(self, *args: Any, rounds: int = 20, **kwargs: Any) -> list[float]:
        """Milliseconds to each depth on these inputs, medians of rounds in turns; kept in `times`
        for batches of this size.
        """
        taken: list[list[float]] = [[] for _ in self.bodies]
        left = torch.empty(0)
        with torch.no_grad():
            for _ in range(rounds + 1):
                for depth, found in enumerate(taken, 1):
                    begun = time.perf_counter()
                    left = self.by_hand(depth, args, kwargs)
                    found.append(1e3 * (time.perf_counter() - begun))
        self.times[len(left)] = [statistics.median(found[1:]) for found in taken]
        return self.times[len(left)]

    def _affordable(self, budget: float, args: Any, kwargs: Any) -> int:
        """The deepest exit within so many milliseconds, by the table of the next larger batch; the
        first one where none is.
        """
        if not self.times:
            raise ValueError("nothing is known of times: call `model.measure(inputs)` first")
        size, known = _size_of([*args, *kwargs.values()]), sorted(self.times)
        times = self.times[known[min(bisect_left(known, size), len(known) - 1)]]
        return max((at for at, t in enumerate(times, 1) if t <= budget), default=1)

    def extra_repr(self) -> str:
        tests = (f"exit {at}: {t.test} {t.threshold:g}" for at, t in enumerate(self.tests, 1))
        return ", ".join(tests)


def _given(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a part gives. Not `part(...)`: a GraphModule's own call prints a traceback of its code
    where it fails.
    """
    return nn.Module.__call__(part, *args, **kwargs)


def _size_of(inputs: Sequence[Any]) -> int:
    """How many samples a call is of, by its first tensor."""
    parts = [p for x in inputs for p in (x.values() if isinstance(x, Mapping) else (x,))]
    return next((len(p) for p in parts if isinstance(p, Tensor) and p.dim()), 1)


def _rows_of(value: Tensor, stay: Tensor) -> Tensor:
    """The rows of several samples; one row is that of all samples."""
    return value if len(value) == 1 else value.index_select(0, stay)


def _together(parts: Sequence[Answered]) -> tuple[Tensor, Tensor | None]:
    """Answers of all samples in the order in which these came, and where each is among the parts:
    None if there is one part.
    """
    if len(parts) == 1:
        return parts[0][1], None
    rows = torch.cat([rows for rows, _, _ in parts if rows is not None])
    order = torch.empty_like(rows)
    order[rows] = torch.arange(len(rows), device=rows.device)
    return torch.cat([found for _, found, _ in parts]).index_select(0, order), order


def _exits_of(parts: Sequence[Answered], order: Tensor | None) -> Tensor:
    """Where each sample left."""
    found = torch.cat([torch.full((len(f),), at, device=f.device) for _, f, at in parts])
    return found if order is None else found.index_select(0, order)
