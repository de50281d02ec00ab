"""The Python face: `compile`, `load`, `export`, and what they return. All logic is below."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import fx, nn

from .grammar.diagnostics import Diagnostic, LissomError
from .grammar.library.program import Program, load_program, program_of
from .grammar.tree.rules import RULE_KINDS
from .passes.functions import FUNCTIONS
from .report import frontier
from .rewrite.apply.cost import said_of_uncounted
from .rewrite.evidence import artifact, certificate
from .rewrite.explain.site_changes import SiteChange, site_changes, timed
from .rewrite.export.export import export_artifact
from .rewrite.journal import Applied, Costs, ExitsFitted, Journal, Verdict
from .rewrite.measure.compare import Metric
from .rewrite.measure.gradients import Loss, loss_of_task
from .rewrite.measure.source import Source
from .rewrite.pipeline.compile import Compiled, Options, as_source, compile_model
from .rewrite.pipeline.other_models import Models
from .rewrite.pipeline.schedule import HostParts
from .rewrite.runtime.exits import EarlyExit
from .rewrite.store.folder import load as load_artifact
from .rewrite.train.report import TrainingRow, training_rows

T = TypeVar("T")
P = ParamSpec("P")


def without_causes(function: Callable[P, T]) -> Callable[P, T]:
    """Diagnostics reach the caller alone: what torch or Python raised inside is in their notes.
    LISSOM_TRACEBACK=1 keeps the chain.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except LissomError as error:
            if not os.environ.get("LISSOM_TRACEBACK"):
                error.__cause__, error.__context__ = None, None
            raise

    return called


@dataclass(frozen=True)
class Result:
    """A compiled model and the evidence for it.

    `model` is a plain `torch.nn.Module`: it runs, trains and exports without lissom.
    """

    compiled: Compiled

    def __repr__(self) -> str:
        """What changed, in a line; `table()` shows more."""
        old, new, count = self.before, self.after, len(self.applied)
        pairs = ((old.params, new.params, "parameters"), (old.macs, new.macs, "MACs"))
        costs = ", ".join(f"{was:,} -> {now:,} {what}" for was, now, what in pairs)
        claims = "" if self.compiled.verified else ", NOT VERIFIED"
        return f"<lissom.Result: {count} rewrites, {costs}{claims}>"

    @property
    def model(self) -> fx.GraphModule | EarlyExit:
        """What was compiled; a model with exits is an `EarlyExit`, from which samples leave."""
        return self.compiled.running

    @property
    def journal(self) -> Journal:
        return self.compiled.journal

    @property
    def before(self) -> Costs:
        return self.compiled.before

    @property
    def after(self) -> Costs:
        return self.compiled.after

    @property
    def applied(self) -> list[Applied]:
        """The rewrites that are in the result, in order."""
        return self.compiled.applied

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What the pipeline's `verify` block asked for."""
        return self.compiled.verdicts

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        """Warnings about the program, as `lissom check` gives them, about the capture, and about
        the run: rules that were not allowed, or changed nothing.
        """
        return (*self.compiled.notes, *self.journal.remarks())

    @property
    def certificate(self) -> dict[str, Any]:
        return certificate.certificate(self.compiled)

    @property
    def plan(self) -> dict[str, Any]:
        """The rewrites as a plan that `lissom apply` executes exactly."""
        return artifact.plan_of(self.compiled)

    def table(self) -> str:
        """Before and after, side by side, as text."""
        rows = [("", "before", "after", "change")]
        for name in ("params", "bytes", "macs", "ops"):
            old, new = getattr(self.before, name), getattr(self.after, name)
            share = f"{100 * (new - old) / old:+.1f} %" if old else ""
            rows.append((name, f"{old:,}", f"{new:,}", share))
        if self.before.uncounted:
            saved = f"{self.after.macs - self.before.macs:+,}"
            rows[3] = ("macs", self.before.macs_said, self.after.macs_said, saved)
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        left = said_of_uncounted(self.before)
        return "\n".join([*lines, left] if left else lines)

    def places(self, latency: bool = False) -> list[SiteChange]:
        """What stands at each place that changed, before and after: ops, bits, bytes, MACs, and the
        kernel that runs. latency: milliseconds too; both models run on the example for about two
        seconds, in turns.
        """
        changes = site_changes(self.compiled)
        return timed(self.compiled, changes).changes if latency and changes else changes

    @property
    def trainings(self) -> list[TrainingRow]:
        """What each `recover` came to, those of rounds taken back and of controls among them."""
        return training_rows(self.journal, self.compiled.kept_stages)

    @property
    def exits(self) -> ExitsFitted | None:
        """What the last `exit on ...` of the program chose: thresholds, and who leaves where."""
        return next(reversed(self.journal.of(ExitsFitted)), None)

    def exits_svg(self) -> str:
        """The trade between costs and metric as a picture (SVG); "" where no program chose
        thresholds.
        """
        return "" if self.exits is None else frontier.svg(self.exits)

    @property
    def controls(self) -> Mapping[str, fx.GraphModule]:
        """What each `control` of the program ended with: to be measured beside the model."""
        return self.compiled.controls

    @without_causes
    def save(self, path: str | Path, *, check_reload: bool = True) -> Path:
        """Writes the artifact folder, with the thresholds that exits have now. Raises V103 where a
        fresh process does not get the same outputs from it.
        """
        self.compiled.take_thresholds()
        return artifact.save_compiled(self.compiled, Path(path), check_reload)[0]


@without_causes
def compile(
    model: nn.Module,
    program: str | Path | Program,
    *,
    inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    second: Any = None,
    data: Source | Iterable[Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    pipeline: str | None = None,
    args: Mapping[str, Any] | None = None,
    allow: Iterable[str] = RULE_KINDS,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    ops: Mapping[str, Any] | None = None,
    loss: Loss = loss_of_task,
    models: Models | None = None,
    checkpoints: str | Path | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Result:
    """Applies a program to a trained model.

    model: an `nn.Module` in eval mode; it is copied, never changed.
    program: the text of a rule file, or the path of one.
    inputs: one example batch, positional (tuple) or by name (dict). Without it the first training
    batch serves. second: inputs of another size, as `inputs`, or a list of several, for models
    that do not run at the sizes that are tried by themselves; the result must equal the model on
    them, too. data: `data(split)` yields batches, which the program's `sample("train", 512)` draws
    from; or a list or loader of batches, for every split. A batch is `(x, y)`, `x`, or a dict of
    inputs by name. metrics: name -> `f(model, batches) -> float`, higher is better; what
    `drop(name)` measures. args: values for the pipeline's parameters. allow: the kinds of rules
    that are applied, ("exact",) to leave approximate ones out. functions: implementations of the
    program's own `extern fn`. ops: torch callables that its `op` declarations name. loss:
    `f(outputs, targets)`, a scalar: what `recover` trains by, and `gradients` are taken of. models:
    models, or functions that build them, by the names that programs use for teachers and students.
    checkpoints: a folder for how far trainings came; the same call goes on from there.

    Raises `LissomError`: its diagnostics say what is wrong, where, why, and what to do. An error
    that `lissom check` finds in the program is raised before the model is captured.
    """
    computed = {**FUNCTIONS, **(functions or {})}
    options = Options(pipeline, args or {}, tuple(allow), computed, ops or {}, verify, seed)
    given = HostParts(models or {}, folder_of(program), as_path(checkpoints))
    options = replace(options, loss=loss, second=second, given=given)
    source = as_source(data)
    return Result(compile_model(model, as_program(program), inputs, source, metrics or {}, options))


def folder_of(program: str | Path | Program) -> Path:
    """Where files lie that a program names: beside it, or where the process runs for a text."""
    if isinstance(program, Program):
        return Path(program.file.span.source.name).parent
    is_file = isinstance(program, Path) or program.endswith(".lissom")
    return Path(program).parent if is_file else Path.cwd()


def as_path(place: str | Path | None) -> Path | None:
    return None if place is None else Path(place)


def as_program(program: str | Path | Program) -> Program:
    """The program of a text or a path; a text has at least one brace, which no path of a rule file
    ends in.
    """
    if isinstance(program, Program):
        return program
    if isinstance(program, Path) or program.endswith(".lissom"):
        return load_program(Path(program))
    return program_of(program, "<program>", Path.cwd())


@without_causes
def load(path: str | Path) -> fx.GraphModule | EarlyExit:
    """The model of an artifact folder, on the CPU, in eval mode. Reading it executes nothing from
    the folder.
    """
    return artifact.running_in(load_artifact(Path(path)))


@without_causes
def export(artifact: str | Path, path: str | Path) -> tuple[Verdict, ...]:
    """Writes the model of an artifact folder for torch.export or ONNX Runtime, as the path ends in
    `.pt2` or `.onnx`, and returns how the outputs of that file were compared with the model's.

    Raises ValueError for another ending; A041 where they differ, and then nothing is written.
    """
    target = Path(path)
    return export_artifact(Path(artifact), target.suffix.removeprefix("."), target)[1]
