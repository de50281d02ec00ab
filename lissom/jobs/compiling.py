"""What `plan`, `apply` and `demo` share: from names on a command line to a compiled model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..grammar.diagnostics import Diagnostic, Label, did_you_mean, fail
from ..grammar.library.program import Program, load_program, program_of
from ..grammar.text.fragment import parse_expression
from ..grammar.tree import tree as t
from ..grammar.tree.fold import literal
from ..model_file import ModelFile
from ..options import APPROXIMATE
from ..output import Output
from ..passes.functions import FUNCTIONS
from ..rewrite.evidence.artifact import check_plan, plan_of
from ..rewrite.journal import Journal, Note
from ..rewrite.pipeline.compile import Compiled, Options, compile_model
from ..rewrite.pipeline.schedule import HostParts
from .named_program import every_exact, program_named

EXACT = ("exact", "lossless", "observe")
"""Kinds of rules that change no output."""

PLAN_FORMAT = 1


@dataclass(frozen=True)
class Request:
    """How a program is to be run; a plan keeps it, so that `apply` runs the same.

    `settings` are the pipeline's arguments as they were written, `allow` the kinds of rules beyond
    the exact. `threads` is part of it because sums are ordered by thread: it decides the last bits,
    hence the digest of the result.
    """

    program: str
    pipeline: str | None = None
    settings: tuple[str, ...] = ()
    allow: tuple[str, ...] = APPROXIMATE
    threads: int = field(default_factory=torch.get_num_threads)


def run_compile(
    file: ModelFile,
    program: Program,
    request: Request,
    out: Output,
    fuel: int | None = None,
    journal: Journal | None = None,
    decided: Iterable[tuple[str, str]] | None = None,
    checkpoints: Path | None = None,
) -> Compiled:
    """Compile the model, with `fuel` rewrites at most; progress is shown on a terminal. decided:
    rules and sites of an earlier run, whose measurements of time are not made again. checkpoints:
    where trainings write how far they came.
    """
    args = read_settings(request.settings, _params(program, request.pipeline))
    with out.progress(f"compiling {file.name}") as progress:
        options = Options(
            request.pipeline,
            args,
            (*EXACT, *request.allow),
            {**FUNCTIONS, **file.functions},
            file.ops,
            fuel=fuel,
            loss=file.loss,
            journal=journal if journal is not None else Journal(),
            progress=progress,
            second=file.second,
            decided=None if decided is None else numbered(decided),
            given=HostParts(file.models, _folder(program), checkpoints),
        )
        return compile_model(file.model, program, file.inputs, file.data, file.metrics, options)


def _folder(program: Program) -> Path:
    """Where files lie that a program names: beside it."""
    return Path(program.file.span.source.name).parent


def numbered(decided: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Which rule and site came when, at the first time."""
    return {pair: number for number, pair in enumerate(dict.fromkeys(decided))}


def read_program(request: Request) -> Program:
    """The program of a rule file, of a library rule by its name, or of all exact rules for ""."""
    if not request.program:
        return every_exact()
    if request.program.isidentifier() and not Path(request.program).exists():
        return program_named(request.program)
    return load_program(Path(request.program))


def _params(program: Program, pipeline: str | None) -> tuple[t.Param, ...]:
    found = program.pipeline(pipeline)
    return found.params if found is not None else ()


# -- --set name=value ------------------------------------------------------------------------------


def read_settings(texts: Iterable[str], params: Sequence[t.Param]) -> dict[str, Any]:
    """The values of `name=value` texts. Raises U004 for a name that is none of `params`."""
    known = [param.name.text for param in params]
    values = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not value:
            raise fail("U004", f"`--set {text}` has no value", help="write --set name=value")
        if name not in known:
            hint = next(iter(did_you_mean(name, known)), f"known: {', '.join(known) or 'none'}")
            place = Label(None, where=f"--set {text}")
            raise fail("U004", f"there is no parameter `{name}` to set", place, help=hint)
        values[name] = _literal(value)
    return values


def _literal(text: str) -> Any:
    """The value of a literal: `30%`, `4`, `-1.5`, `true`, `"text"`. A bare word is text."""
    expr = parse_expression(text, f"--set {text}")
    if isinstance(expr, t.Name):
        return expr.text
    found = literal(expr)  # a share stays one, so that it is printed as a share
    if found is not None or isinstance(expr, t.Constant):
        return found
    hint = "write a number, a share like 30%, true, false, none or a text"
    raise fail("U004", f"`{text}` is no plain value", Label(expr.span), help=hint)


# -- plans -----------------------------------------------------------------------------------------


def plan_document(compiled: Compiled, request: Request) -> dict[str, Any]:
    """A plan with how it was made. Nothing in it is ever executed."""
    return plan_of(compiled) | {"request": asdict(request)}


def read_plan(path: Path) -> tuple[dict[str, Any], Request]:
    """A plan and how it was made. Raises U006 for a file that is no plan."""
    try:
        plan = json.loads(path.read_bytes())
        request = _read_request(plan["request"])
        _check_plan_fields(plan)
    except OSError as error:
        place = Label(None, where=str(path))
        raise fail("U006", f"cannot read the plan: {error.strerror}", place) from None
    except (ValueError, KeyError, TypeError) as error:
        hint = "make one with `lissom plan MODEL PROGRAM -o plan.json`"
        note = f"{type(error).__name__}: {error}"
        place = Label(None, where=str(path))
        raise fail("U006", f"`{path}` is no plan", place, note=note, help=hint) from None
    return plan, request


def _read_request(found: Mapping[str, Any]) -> Request:
    settings, allow = (tuple(map(_text, found[key])) for key in ("settings", "allow"))
    pipeline = None if found["pipeline"] is None else _text(found["pipeline"])
    threads = found["threads"]
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise ValueError(f"threads is {threads!r}")
    return Request(_text(found["program"]), pipeline, settings, allow, threads)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} is not a text")
    return value


def _check_plan_fields(plan: Mapping[str, Any]) -> None:
    if plan["format"] != PLAN_FORMAT:
        raise ValueError(f"format {plan['format']!r}; this lissom reads {PLAN_FORMAT}")
    for text in (plan["original"], plan["result"], plan["program"]["text"]):
        _text(text)
    for entry in plan["applications"]:
        for key in ("stage", "rule", "site"):
            _text(entry[key])


def planned_program(plan: Mapping[str, Any], request: Request) -> Program:
    """The program of a plan. Its own text is in the plan; what it uses is read where it was."""
    path = Path(request.program)
    return program_of(plan["program"]["text"], request.program, path.parent)


def is_main_process() -> bool:
    """Whether this process writes what comes out, where a launcher started several."""
    return os.environ.get("RANK", "0") == "0"


def apply_saved_plan(
    file: ModelFile, path: Path, out: Output, checkpoints: Path | None = None
) -> tuple[Compiled, Request]:
    """Do exactly what a plan says. Raises P101 where that is not what comes out."""
    plan, request = read_plan(path)
    with threads(request.threads):
        decided = [(entry["rule"], entry["site"]) for entry in plan["applications"]]
        program = planned_program(plan, request)
        compiled = run_compile(
            file, program, request, out, decided=decided, checkpoints=checkpoints
        )
    check_plan(plan, compiled)
    return compiled, request


class threads:
    """Runs torch on this many threads, and then on as many as before."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self.before)


# -- what the run had to say -----------------------------------------------------------------------


def remarks(compiled: Compiled, strict: bool) -> list[Diagnostic]:
    """Remarks of the capture, and rules that changed nothing: errors if `strict`."""
    said = compiled.journal.remarks("error" if strict else "warning")
    return [*compiled.notes, *(remark for remark in said if remark.code != "W701")]


def not_allowed(compiled: Compiled) -> list[str]:
    """The rules that `--allow exact` left out."""
    notes = [note for note in compiled.journal.of(Note) if note.code == "W701"]
    return list(dict.fromkeys(note.text.partition(" is ")[0] for note in notes))
