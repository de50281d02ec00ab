"""What `plan`, `apply` and `demo` print about a compilation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..jobs.compiling import not_allowed
from ..jobs.summary import (
    batches_of,
    compared,
    metrics_on,
    refuse_broken,
    rule_rows,
    stage_ends,
)
from ..model_file import ModelFile
from ..output import Output
from ..rewrite.evidence.artifact import save_compiled
from ..rewrite.journal import ExitsFitted, plain
from ..rewrite.measure.latency import Latency, measure_latency
from ..rewrite.pipeline.compile import Compiled
from ..rewrite.train.report import training_rows
from . import tables
from .sites import show_processor, show_sites


def show_rules(out: Output, compiled: Compiled, asked: bool = True) -> None:
    """The table of rules, and which rules were not allowed. Rules that nobody `asked` for by name
    are shown where they found something.
    """
    rows = rule_rows(compiled)
    tables.captured(out, compiled)
    tables.rules(out, [row for row in rows if asked or row.sites or row.misses])
    trained = training_rows(compiled.journal, compiled.kept_stages)
    tables.trainings(out, trained)
    fitted = compiled.journal.of(ExitsFitted)
    for one in fitted[-1:]:
        tables.exits(out, one)
    left = not_allowed(compiled)
    if left:
        rules = "1 approximate rule" if len(left) == 1 else f"{len(left)} approximate rules"
        out.say(f"{rules} left out by --allow exact ({', '.join(left)})")
    out.fields |= {
        "before": asdict(compiled.before),
        "after": asdict(compiled.after),
        "rules": [row.as_json() for row in rows],
        "trainings": [row.as_json() for row in trained],
        "exits": [asdict(one) for one in fitted],
        "verdicts": [plain(verdict) for verdict in compiled.verdicts],
        "not_allowed": left,
    }


def show_plan(out: Output, compiled: Compiled, asked: bool = True, latency: bool = False) -> None:
    """The machine, the rules, what stands at each place, the checks that were asked for, and the
    total. latency: how long each place takes is measured.
    """
    show_processor(out)
    show_rules(out, compiled, asked)
    show_sites(out, compiled, latency)
    if out.verbose:
        tables.stages(out, stage_ends(compiled))
    tables.verdicts(out, "verify", compiled.verdicts)
    tables.total(out, compiled)


def write_result(
    out: Output, file: ModelFile, compiled: Compiled, folder: Path, measured: str | None
) -> None:
    """Write the artifact, reload it in a fresh process, and show what it is worth.

    Raises V104 where a claim of `verify` does not hold, V103 where the reloaded model differs.
    """
    tables.stages(out, stage_ends(compiled))
    tables.verdicts(out, "verify", compiled.verdicts)
    refuse_broken(compiled.verdicts)
    with out.progress(f"writing {folder}"):
        _, reloaded = save_compiled(compiled, folder)
    tables.verdicts(out, "reload", reloaded)
    with out.progress("measuring"):
        metrics = metrics_on(file, compiled, measured) if measured is not None else []
        rows = compared(compiled, folder, _latency(file, compiled, measured), metrics)
    tables.comparison(out, rows)
    out.fields |= {
        "output": str(folder),
        "compared": [asdict(row) for row in rows],
        "stages": [plain(end) for end in stage_ends(compiled)],
        "reload": [plain(verdict) for verdict in reloaded],
    }


def _latency(file: ModelFile, compiled: Compiled, split: str | None) -> Latency:
    """Of both models as graphs, on the first batch of a split, or on the example inputs."""
    samples = compiled.samples
    args = samples.inputs if split is None else samples.args(batches_of(file, split)[0])
    return measure_latency(compiled.original, compiled.running, args)
