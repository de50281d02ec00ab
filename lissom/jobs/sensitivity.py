"""Sensitivity of a model to a rule: one column for each value of a parameter, one row for each
place. Columns are measured in parts, here or in other processes, which load the model by its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from torch import nn

from ..grammar.diagnostics import Label
from ..model_file import ModelFile, load_model
from ..output import Output
from ..rewrite.explain.sensitivity import SiteCost, effects
from ..rewrite.measure.compare import Metrics
from ..rewrite.rules.rule import compile_rule
from .compiling import read_settings, threads
from .explaining import given_by, program_at, rule_of, state_of
from .summary import batches_of


@dataclass(frozen=True)
class Question:
    """What is measured. `settings` as on the command line; `metric` on the data of `split`."""

    model: str
    rule: str
    program: str | None = None
    settings: tuple[str, ...] = ()
    metric: str | None = None
    split: str = "valid"


@dataclass(frozen=True)
class SensitivityColumn:
    """The effects for one value of the parameter that varies; "" if none does."""

    value: str
    effects: tuple[SiteCost, ...]


@dataclass(frozen=True)
class SensitivityTable:
    """Columns have the same places in the same order. `processes`: how many did the measuring."""

    columns: tuple[SensitivityColumn, ...]
    processes: int


@dataclass(frozen=True)
class _Job:
    question: Question
    value: str
    part: int
    parts: int


Measured = tuple[int, list[SiteCost]]
"""What one job found, and the process that it ran in."""


def measure_sensitivity(
    question: Question, vary: str = "", values: Sequence[str] = (), jobs: int = 1, cluster: str = ""
) -> SensitivityTable:
    """The table, measured by `jobs` processes, or by all workers of the dask cluster whose
    scheduler listens at `cluster`; these must see the files of the model under the same names.

    Raises U004 where `vary` names no parameter of the rule, D001, D002 or D004 where the split or
    the metric is not there, and what loading and capturing the model raise.
    """
    question = replace(question, model=_absolute(question.model), program=_file(question.program))
    with _workers(jobs, cluster) as count:
        asked = [
            _Job(question, value, part, count) for value in values or ("",) for part in range(count)
        ]
        named = [replace(job, value=f"{vary}={job.value}" if vary else "") for job in asked]
        done = _run(named, jobs, cluster)
    columns = []
    for number, value in enumerate(values or ("",)):
        parts = [effects for _, effects in done[number * count : (number + 1) * count]]
        columns.append(SensitivityColumn(value, tuple(_interleaved(parts))))
    return SensitivityTable(tuple(columns), len({process for process, _ in done}))


def _absolute(model: str) -> str:
    place, colon, function = model.rpartition(":") if ":" in model else (model, "", "")
    return f"{Path(place).resolve()}{colon}{function}" if place.endswith(".py") else model


def _file(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _interleaved(parts: Sequence[list[SiteCost]]) -> list[SiteCost]:
    """Job p of n measured the places p, p + n, p + 2n ..."""
    rounds = zip_longest(*parts)
    return [effect for found in rounds for effect in found if effect is not None]


# -- processes -------------------------------------------------------------------------------------


@contextmanager
def _workers(jobs: int, cluster: str) -> Iterator[int]:
    """How many processes there are to share the work."""
    if not cluster:
        yield max(jobs, 1)
        return
    from distributed import Client
    from joblib import parallel_config

    with Client(cluster) as client, parallel_config("dask", client=client):
        yield max(len(client.scheduler_info(n_workers=-1)["workers"]), 1)


def _run(asked: Sequence[_Job], jobs: int, cluster: str) -> list[Measured]:
    if jobs <= 1 and not cluster:
        return [_measured(job) for job in asked]
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=-1 if cluster else jobs)(delayed(_measured)(job) for job in asked))


def _measured(job: _Job) -> Measured:
    """Runs in a process of its own, on one thread: others measure beside it."""
    with threads(1):
        return os.getpid(), _effects(job)


def _effects(job: _Job) -> list[SiteCost]:
    question, out = job.question, Output("sensitivity", quiet=True)
    program = program_at(question.program)
    source = rule_of(program, question.rule)
    file = load_model(question.model)
    state = state_of(file, program, out)
    given = given_by(program, question.rule, state)
    settings = [*question.settings, *([job.value] if job.value else [])]
    given |= read_settings(settings, source.params)
    rule = compile_rule(source, given, functions=state.functions, declared=program.declarations)
    return effects(state, rule, _metric(file, question), job.part, job.parts)


def _metric(file: ModelFile, question: Question) -> Callable[[nn.Module], float] | None:
    if question.metric is None:
        return None
    metrics, place = Metrics(file.model, file.metrics), Label(None, where="--metric")
    metrics.require(question.metric, place)
    batches = batches_of(file, question.split, "--on")
    return lambda model: metrics.value(model, question.metric or "", batches, place)
