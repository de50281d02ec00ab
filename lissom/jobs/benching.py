"""How long a written model takes for one batch, and where its samples leave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import torch
from torch import nn

from ..grammar.diagnostics import Label, fail
from ..model_file import ModelFile
from ..rewrite.evidence.artifact import examples_of, running_in
from ..rewrite.graph.runs import run_model
from ..rewrite.measure.batches import Taken, batch_size, part
from ..rewrite.measure.samples import Samples
from ..rewrite.runtime.exits import EarlyExit
from ..rewrite.store.folder import Loaded, load

Args = tuple[Any, ...]
WARM_UP = 3
"""Batches that are run before the clock starts."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One way to run the model on batches of one size: milliseconds of a batch over `runs`, samples
    in a second, and, of exits, which share of the samples leaves at each depth.
    """

    name: str
    batch: int
    mean: float
    p50: float
    p99: float
    per_second: float
    runs: int
    shares: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    folder: Path, file: ModelFile | None, split: str, sizes: Sequence[int], seconds: float
) -> list[BenchRow]:
    """Every way to run the model, in turns, for some seconds at each batch size: on the data of a
    model file, else on the recorded example. Raises A-codes for damage, D001 and D002 for data that
    is not there, U011 where no batch is as large.
    """
    loaded = load(folder)
    model = running_in(loaded)
    given = list(_given(loaded, folder, file, split))
    return [row for size in sizes for row in _of_size(model, given, size, seconds)]


def _given(loaded: Loaded, folder: Path, file: ModelFile | None, split: str) -> Iterator[Args]:
    """Inputs, batch by batch."""
    if file is None or file.data is None:
        yield from (example.args for example in examples_of(loaded, folder)[:1])
        return
    names = [str(n.target) for n in loaded.module.graph.nodes if n.op == "placeholder"]
    samples = Samples((), file.data, taken=Taken(tuple(names)))
    place = Label(None, where=f"--split {split}")
    samples.define(split, split, None, place)
    yield from (samples.args(batch) for batch in samples.batches(split, place))


def _of_size(
    model: nn.Module, given: Sequence[Args], size: int, seconds: float
) -> Iterator[BenchRow]:
    batches = [piece for args in given for piece in _pieces(args, size)]
    if not batches:
        most = max(map(batch_size, given), default=0)
        hint = "give data with larger batches, `--data model.py --split valid`, or another --batch"
        message = f"there is no batch of {size}: the largest has {most} samples"
        raise fail("U011", message, Label(None, where=f"--batch {size}"), help=hint)
    ways = list(_ways(model))
    shares = _shares(model, batches)
    times = _in_turns([run for _, run in ways], batches, seconds)
    for (name, _), taken in zip(ways, times, strict=True):
        yield _row(name, size, taken, shares if name == "exits" else ())


def _pieces(args: Args, size: int) -> Iterator[Args]:
    """Parts of a batch of exactly this size."""
    count = batch_size(args)
    return (part(args, count, at + size, at) for at in range(0, count - size + 1, size))


def _ways(model: nn.Module) -> Iterator[tuple[str, Callable[[Args], Any]]]:
    """How a model can be run, each with a name."""
    if not isinstance(model, EarlyExit):
        yield "model", lambda args: run_model(model, args)
        return
    yield "exits", lambda args: run_model(model, args)
    yield "exits off", lambda args: _at_depth(model, len(model.bodies), args)
    for depth in range(1, len(model.bodies)):
        yield f"all at exit {depth}", lambda args, depth=depth: _at_depth(model, depth, args)


def _at_depth(model: EarlyExit, depth: int, args: Args) -> Any:
    with _depth(model, depth):
        return run_model(model, args)


@contextmanager
def _depth(model: EarlyExit, depth: int) -> Iterator[None]:
    model.depth = depth
    try:
        yield
    finally:
        model.depth = None


def _shares(model: nn.Module, batches: Sequence[Args]) -> tuple[float, ...]:
    if not isinstance(model, EarlyExit):
        return ()
    with torch.no_grad():
        exits = torch.cat([model(*args, return_exit=True)[1] for args in batches])
    depths = range(1, len(model.bodies) + 1)
    return tuple(float((exits == depth).float().mean()) for depth in depths)


def _in_turns(
    runs: Sequence[Callable[[Args], Any]], batches: Sequence[Args], seconds: float
) -> list[list[float]]:
    """Milliseconds of each run: each batch goes through all ways before the next one comes."""
    found: list[list[float]] = [[] for _ in runs]
    for args in (list(batches) * WARM_UP)[:WARM_UP]:
        for run in runs:
            run(args)
    ends, at = time.perf_counter() + seconds, 0
    while time.perf_counter() < ends or at < len(batches[:10]):
        for run, taken in zip(runs, found, strict=True):
            begun = time.perf_counter()
            run(batches[at % len(batches)])
            taken.append(1e3 * (time.perf_counter() - begun))
        at += 1
    return found


def _row(name: str, size: int, taken: Sequence[float], shares: tuple[float, ...]) -> BenchRow:
    p99 = quantiles(taken, n=100)[-1] if len(taken) > 1 else math.nan
    mean = fmean(taken)
    return BenchRow(name, size, mean, median(taken), p99, 1e3 * size / mean, len(taken), shares)
