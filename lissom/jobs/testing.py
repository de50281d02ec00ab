"""Runs the proofs of many rules, in several processes where that helps."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..grammar.checks.check import check_program
from ..grammar.diagnostics import Diagnostic, Label, LissomError, fail
from ..grammar.library.program import Program, load_program
from ..grammar.tree import tree as t
from ..grammar.tree.clauses import guard_holes, over_images, over_ops
from ..model_file import load_tables
from ..passes.functions import FUNCTIONS
from ..rewrite.ops.vocabulary import Vocabulary
from ..rewrite.proving.because import because
from ..rewrite.proving.cases import CaseResult, run_test
from ..rewrite.proving.guards.propose import Proposal, propose
from ..rewrite.proving.prove import NOT_TESTED, Proof, prove, untested
from ..rewrite.proving.report import RuleReport, report_of
from ..rewrite.proving.subject import Subject
from ..rewrite.proving.trial import UNSOUND, WRONG
from ..rewrite.proving.wide import prove_wide
from ..rewrite.rules.rule import check_supported
from . import proposing


@dataclass(frozen=True, slots=True)
class Job:
    """One rule of one file, and how hard to try it. `python` names a file whose `functions` and
    `ops` the rule may use.
    """

    path: str
    rule: str
    models: int
    seed: int
    python: str | None


def readable(paths: Iterable[Path]) -> tuple[list[Path], list[Diagnostic]]:
    """The files that can be read, and what is wrong with them all: `lissom check`, errors alone."""
    found: list[Diagnostic] = []
    whole: list[Path] = []
    for path in paths:
        try:
            found += _errors(str(path))
            whole.append(path)
        except LissomError as error:
            found += error.diagnostics
    return whole, list(dict.fromkeys(found))


def jobs_of(
    paths: Iterable[Path], names: Sequence[str], models: int, seed: int, python: str | None
) -> list[Job]:
    """One job for each rule of the files; only rules in `names`, if there are any. Raises N001."""
    found = [
        Job(str(path), rule.name.text, models, seed, python)
        for path in paths
        for rule in _program(str(path)).file.all(t.Rule)
        if not names or rule.name.text in names
    ]
    missing = set(names) - {job.rule for job in found}
    if missing:
        raise fail("N001", f"no rule is called `{min(missing)}`", Label(None, where=min(missing)))
    return found


def _program(path: str) -> Program:
    """Each file is parsed once in a process, until it changes."""
    return _loaded(path, _written(path))


def _written(path: str) -> int:
    file = Path(path)
    return file.stat().st_mtime_ns if file.exists() else 0


@lru_cache(maxsize=64)
def _loaded(path: str, written: int) -> Program:
    return load_program(Path(path))


def _errors(path: str) -> tuple[Diagnostic, ...]:
    """What `lissom check` calls an error in a file and those that it uses."""
    return _checked(path, _written(path))


@lru_cache(maxsize=64)
def _checked(path: str, written: int) -> tuple[Diagnostic, ...]:
    return tuple(d for d in check_program(_loaded(path, written)) if d.severity == "error")


@cache
def _tables(python: str | None) -> tuple[Mapping[str, Callable[..., Any]], Mapping[str, Any]]:
    return load_tables(python) if python is not None else ({}, {})


def _subject(path: str, rule: t.Rule, python: str | None) -> Subject:
    vocabulary = Vocabulary(_program(path).declarations, _tables(python)[1])
    return Subject(rule, vocabulary, _functions(python), tuple(_program(path).own_rules.values()))


def _functions(python: str | None) -> dict[str, Callable[..., Any]]:
    """What rules may compute: the library's functions and those of the model file."""
    return {**FUNCTIONS, **_tables(python)[0]}


def prove_job(job: Job) -> RuleReport | Proposal | str:
    """The proof of one rule, a proposal for one with a hole; the reason where this version cannot
    apply it. Never raises: whatever happens to one rule says nothing about the others.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch speaks of tiny extents, which are meant
    try:
        error = next((d for d in _errors(job.path) if is_about(d, job)), None)
        if error is not None:
            return not_tested(job, f"`lissom check` finds {error.code}: {error.message}")
        return _tested(job)
    except LissomError as error:
        first = error.diagnostics[0]
        return not_tested(job, f"{first.code}: {first.message}")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return not_tested(job, f"the tester failed at {where}: {type(error).__name__}: {error}")


def not_tested(job: Job, why: str) -> RuleReport:
    """The report on a rule on which nothing could be tried."""
    rule = _program(job.path).own_rules[job.rule]
    return report_of(untested(rule, why), rule)


def is_about(found: Diagnostic, job: Job) -> bool:
    """Whether it is at the job's rule."""
    rule = _program(job.path).own_rules[job.rule].span
    spans = [label.span for label in found.labels if label.span is not None]
    return any(s.source is rule.source and rule.start <= s.start < rule.end for s in spans)


def _tested(job: Job) -> RuleReport | Proposal | str:
    rule = _program(job.path).own_rules[job.rule]
    wide = not over_ops(rule)
    if guard_holes(rule) and not wide:
        return propose(_subject(job.path, rule, job.python), job.models, job.seed)
    try:
        check_supported(rule, _functions(job.python), _program(job.path).declarations)
    except LissomError as error:
        return error.diagnostics[0].message
    if rule.kind == "observe":
        return "an observe rule attaches observers and changes nothing: there is nothing to prove"
    if over_images(rule):
        return "no models with images of several sizes are drawn; nothing was shown or refuted"
    proved: Callable[[Subject, int, int], Proof] = prove_wide if wide else prove
    subject = _subject(job.path, rule, job.python)
    report = report_of(proved(subject, job.models, job.seed), rule)
    # A model that is wrong on other inputs than its example's is no site that a guard could leave.
    telling = (WRONG, UNSOUND) if wide else (UNSOUND,)
    asks = not rule.all(t.MatchParam, t.MatchValue)  # what tells those apart is asked of nobody yet
    differs = asks and any(found.kind in telling for found in report.failures)
    return (
        replace(report, because=because(subject, like=report.tape or None)) if differs else report
    )


def run_all(
    jobs: Sequence[Job], processes: int
) -> Iterator[tuple[Job, RuleReport | Proposal | str]]:
    """Every job with its report, as they get ready."""
    if processes == 1 or len(jobs) < 2:
        yield from ((job, prove_job(job)) for job in jobs)
        return
    left = list(jobs)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(prove_job, job): job for job in jobs}
        for done in as_completed(waiting):
            if isinstance(done.exception(), BrokenProcessPool):
                continue
            left.remove(waiting[done])
            yield waiting[done], done.result()
    yield from ((job, _run_apart(job)) for job in left)


def _run_apart(job: Job) -> RuleReport | Proposal | str:
    """One rule in a process of its own, which may die."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(prove_job, job).result()
        except BrokenProcessPool:
            return not_tested(job, "the process that tested it died")


def run_blocks(paths: Iterable[Path], python: str | None) -> list[CaseResult]:
    """Every line of every `test` block."""
    return [
        result
        for path in paths
        for test in _program(str(path)).file.all(t.Test)
        for result in run_test(test, _finder(path, python), _functions(python))
    ]


def _finder(path: Path, python: str | None) -> Callable[[t.Word], Subject]:
    program = _program(str(path))
    return lambda word: _subject(str(path), program.rule(word), python)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- as diagnostics --------------------------------------------------------------------------------


def diagnostics(job: Job, report: RuleReport) -> list[Diagnostic]:
    """A mistake is an error, a rule that never fired too; what was not shown is a warning."""
    rule = _program(job.path).own_rules[job.rule]
    label = Label(rule.name.span, "this rule")
    if report.failures:
        first = report.failures[0]
        message = f"`{report.rule}` fails its test: {first.kind} ({first.condition})"
        return [Diagnostic("V110", message, (label,), (first.detail, *report.because))]
    if report.verdict == NOT_TESTED:
        return [Diagnostic("V114", f"`{report.rule}` was not tested", (label,), report.weak)]
    if report.weak:
        message = f"`{report.rule}` is weakly verified"
        return [Diagnostic("V111", message, (label,), report.weak, severity="warning")]
    return []


def open_diagnostic(job: Job, proposal: Proposal) -> Diagnostic:
    """A rule with a hole is an error, and the proposal is the way to mend it."""
    hole = guard_holes(_program(job.path).own_rules[job.rule])[0]
    return proposing.diagnostic(proposal, hole.span)


def case_diagnostics(results: Iterable[CaseResult]) -> list[Diagnostic]:
    return [
        Diagnostic(
            "V112",
            f"test `{result.test}`: this does not hold",
            (Label(result.case.span),),
            (result.seen,),
        )
        for result in results
        if not result.holds
    ]
