"""`lissom test`: rules that test themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..grammar.documents import json_text
from ..output import FAILED, OK, Output, command, exit_code
from .check import rule_files

if TYPE_CHECKING:
    from ..grammar.diagnostics import Diagnostic
    from ..jobs.testing import Job
    from ..rewrite.proving.cases import CaseResult
    from ..rewrite.proving.guards.propose import Proposal
    from ..rewrite.proving.report import RuleReport
    from ..rewrite.proving.worker import Death

COLUMNS = ("rule", "fired", "silent", "near", "mutants", "algebra", "bits", "float", "verdict")
SHOWN = 3
"""Trials that ended their process are named so many times for each rule."""

BUDGETS = (
    "budget of",
    "kept",
    "broken below",
    "worst/budget",
    "fresh data",
    "drift",
    "worst drift",
)


@command(formats=("text", "json", "junit", "github"))
@click.argument("files", nargs=-1, required=True)
@click.option("--rule", "names", multiple=True, help="Test only this rule; may be repeated.")
@click.option("--models", default=400, show_default=True, help="Generated models for each rule.")
@click.option("--seed", default=0, show_default=True, help="Where the choices start.")
@click.option("--jobs", "processes", type=int, help="Processes; as many as cores if not given.")
@click.option("--python", metavar="FILE", help="A file whose `functions` and `ops` the rules name.")
@click.option("--certificate", metavar="FILE", help="Write the evidence as JSON.")
@click.option("--failures", metavar="FOLDER", help="Write a script for each mistake found.")
@click.option("--strict", is_flag=True, help="A rule that is weakly verified is an error.")
def test(
    out: Output,
    files: tuple[str, ...],
    names: tuple[str, ...],
    models: int,
    seed: int,
    processes: int | None,
    python: str | None,
    certificate: str | None,
    failures: str | None,
    strict: bool,
) -> int:
    """Test the rules in FILES, and in folders, on models generated from their own text.

    A rule must fire where its left side is planted, stay silent on near-misses for the right
    reason, compute the same, and its mutants must be noticed. Lines of `test` blocks are tried too.
    For `where { ? }` a guard is proposed.
    """
    from ..jobs import testing

    paths, unsound = testing.readable(rule_files(files))
    jobs = testing.jobs_of(paths, names, models, seed, python)
    reports, proposals, skipped = _prove(out, jobs, processes or testing.cores())
    cases = testing.run_blocks(paths, python) if not names else []
    _show(out, jobs, reports, skipped, cases)
    found = [d for d in unsound if not names or any(testing.is_about(d, job) for job in jobs)]
    found += [d for job in jobs if job in reports for d in testing.diagnostics(job, reports[job])]
    found += [testing.open_diagnostic(job, given) for job, given in proposals.items()]
    found += testing.case_diagnostics(cases)
    _say_proposals(out, proposals)
    _machine(out, jobs, reports, proposals, cases, found)
    if certificate is not None and jobs:
        _write_certificate(Path(certificate), jobs, reports)
        out.say(f"wrote {certificate}")
    if failures is not None:
        _write_failures(out, Path(failures), jobs, reports)
    bad = any(d.severity == "error" or strict for d in found)
    return (FAILED if jobs else exit_code(unsound)) if bad else OK


def _prove(
    out: Output, jobs: Sequence[Job], processes: int
) -> tuple[dict[Job, RuleReport], dict[Job, Proposal], dict[Job, str]]:
    from ..jobs import testing

    reports: dict[Job, RuleReport] = {}
    proposals: dict[Job, Proposal] = {}
    skipped: dict[Job, str] = {}
    with out.progress("testing") as progress:
        for number, (job, found) in enumerate(testing.run_all(jobs, processes)):
            progress(job.rule, number, len(jobs))
            if isinstance(found, str):
                skipped[job] = found
            elif isinstance(found, testing.Proposal):
                proposals[job] = found
            else:
                reports[job] = found
    return reports, {job: proposals[job] for job in jobs if job in proposals}, skipped


# -- for people ------------------------------------------------------------------------------------


def _show(
    out: Output,
    jobs: Sequence[Job],
    reports: dict[Job, RuleReport],
    skipped: dict[Job, str],
    cases: Sequence[CaseResult],
) -> None:
    if out.format != "text":
        return
    rows = [_row(reports[job]) for job in jobs if job in reports]
    if rows:
        out.table([COLUMNS, *rows], "<>>>>>>>", header=True)
    _say_budgets(out, [reports[job] for job in jobs if job in reports])
    for report in (reports[job] for job in jobs if job in reports):
        for blamed in report.blamed:
            out.say(f"{report.rule}: {blamed.text}")
        if report.died:
            out.say(f"{report.rule}: {died(report.died)}")
    for job, why in skipped.items():
        out.say(f"not run: {job.rule}: {why}")
    for result in cases:
        mark = "ok" if result.holds else "FAILED"
        out.say(f"{mark}  {result.test}: {result.case.span.flat}  {result.seen}")
    out.say(_summary(list(reports.values())))


def died(deaths: Sequence[Death]) -> str:
    """Trials that ended their process: how many, and which came first."""
    count = f"{len(deaths)} {'trial' if len(deaths) == 1 else 'trials'} ended the process"
    more = f", and {len(deaths) - SHOWN} more" if len(deaths) > SHOWN else ""
    return f"{count}: {'; '.join(death.text for death in deaths[:SHOWN])}{more}"


def _row(report: RuleReport) -> tuple[str, ...]:
    near = sum(item.silent + item.equal for item in report.near)
    return (
        report.rule,
        str(report.fired),
        str(sum(report.silent.values()) + sum(report.refused.values())),
        str(near),
        f"{report.killed}/{report.mutants}",
        f"{report.algebra.proved}/{report.algebra.sites}",
        f"{report.bit_equal}/{report.bits}",
        f"{report.ratio:.2f}",
        report.verdict,
    )


def _say_budgets(out: Output, reports: Sequence[RuleReport]) -> None:
    """How approximate rules keep their budgets; nothing where there are none."""
    kept = [(report.rule, c) for report in reports if (c := report.confidence) is not None]
    if not kept:
        return
    rows = [
        (name, f"{c.held}", f"{c.rate_below:.1%}", f"{c.worst:.2f}", f"{c.fresh:.0%}")
        + (f"{c.drift:.1%}", f"{c.drift_worst:.0%}")
        for name, c in kept
    ]
    out.table([BUDGETS, *rows], "<>>>>>>", header=True)
    level = f"{kept[0][1].level:.0%}"
    out.say(
        f"with {level} confidence fewer than `broken below` of such rewrites break their budget"
    )


def _say_proposals(out: Output, proposals: dict[Job, Proposal]) -> None:
    """Rules with a hole, `where { ? }`: the verdict is open, and here is what may stand there."""
    from ..jobs.proposing import lines

    if out.format == "text":
        for proposal in proposals.values():
            out.say("\n".join(lines(proposal)))
    out.fields["proposals"] = [proposal.as_json() for proposal in proposals.values()]


def _summary(reports: Sequence[RuleReport]) -> str:
    fired = sum(report.fired for report in reports)
    mutants = sum(report.mutants for report in reports)
    killed = sum(report.killed for report in reports)
    models = sum(report.models for report in reports)
    failed = sum(report.verdict in ("FAILED", "NOT TESTED") for report in reports)
    rules = f"{len(reports)} {'rule' if len(reports) == 1 else 'rules'}"
    tried = f"{models:,} models, {fired:,} rewrites, {killed:,} of {mutants:,} mutants killed"
    return f"{rules}, {tried}, {failed} failed or not tested"


# -- for machines ----------------------------------------------------------------------------------


def _machine(
    out: Output,
    jobs: Sequence[Job],
    reports: dict[Job, RuleReport],
    proposals: dict[Job, Proposal],
    cases: Sequence[CaseResult],
    found: Sequence[Diagnostic],
) -> None:
    from ..report.formats import github, junit

    done = [reports[job] for job in jobs if job in reports]
    if out.format == "github":
        click.echo(github(found))
        return
    if out.format == "junit":
        held = [(r.rule, r.place, r.seconds, _failure(r)) for r in done]
        held += [(p.rule, p.place, p.seconds, f"open: {p.clause}") for p in proposals.values()]
        click.echo(junit("lissom", held))
        return
    out.report(*found)
    out.fields |= {
        "rules": [report.as_json() for report in done],
        "tests": [{"test": c.test, "holds": c.holds, "seen": c.seen} for c in cases],
    }


def _failure(report: RuleReport) -> str | None:
    if report.verdict == "NOT TESTED":
        return f"NOT TESTED: {report.weak[0]}"
    if not report.failures:
        return None
    first = report.failures[0]
    return f"{first.kind} ({first.condition})\n{first.detail}"


def _write_certificate(path: Path, jobs: Sequence[Job], reports: dict[Job, RuleReport]) -> None:
    from ..rewrite.proving.report import rule_certificate
    from ..rewrite.store.files import write_file

    document = rule_certificate([reports[job] for job in jobs if job in reports], jobs[0].seed)
    write_file(path, (json_text(document) + "\n").encode())


def _write_failures(
    out: Output, folder: Path, jobs: Sequence[Job], reports: dict[Job, RuleReport]
) -> None:
    from importlib.metadata import version

    from ..rewrite.proving.reproduce import script
    from ..rewrite.store.files import write_file

    for job, report in ((job, reports[job]) for job in jobs if job in reports):
        if not report.tape:
            continue
        path = folder / f"{job.rule}.py"
        folder.mkdir(parents=True, exist_ok=True)
        text = Path(job.path).read_text(encoding="utf-8")
        write_file(path, script(report, text, path.name, version("lissom")).encode())
        out.say(f"wrote {path}")
