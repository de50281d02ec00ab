"""`lissom demo`: train, plan, apply and verify, from nothing to a table, in under a minute."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import click

from ..grammar.diagnostics import Diagnostic, Label, LissomError, fail
from ..grammar.documents import json_text
from ..output import MISSING_PACKAGE, Output, command
from ..rewrite.store.files import write_file

FILES = ("model.py", "shrink.lissom")
SPLIT = "test"


@command()
@click.option("-o", "--output", default="demo", show_default=True, help="The folder to write.")
def demo(out: Output, output: str) -> int:
    """Train a small digit reader, shrink it by a readable program, and verify the result.

    Nothing is downloaded: the digits come with scikit-learn. The folder then holds the model, the
    program, the weights, the plan and the result, to play with.
    """
    _require_data()
    folder = Path(output)
    _copy(folder)
    return _run(out, folder)


def _require_data() -> None:
    """Raises U010, hence exit code 4, where the package that carries the digits is missing."""
    if importlib.util.find_spec("sklearn") is None:
        text = "the demo reads its digits from scikit-learn, which is not installed"
        raise LissomError(Diagnostic(MISSING_PACKAGE, text, helps=('pip install "lissom[demo]"',)))


def _copy(folder: Path) -> None:
    """Copy the model and the program. Raises U005 rather than overwrite what was changed."""
    home = resources.files("lissom").joinpath("demo")
    for name in FILES:
        content, path = home.joinpath(name).read_bytes(), folder / name
        if path.exists() and path.read_bytes() != content:
            place = Label(None, where=str(path))
            hint = "choose another folder: lissom demo --output FOLDER"
            raise fail("U005", f"`{path}` was changed and would be overwritten", place, help=hint)
        write_file(path, content)


def _run(out: Output, folder: Path) -> int:
    from ..jobs.compiling import (
        Request,
        apply_saved_plan,
        plan_document,
        read_program,
        remarks,
        run_compile,
    )
    from ..model_file import load_model
    from ..report import planning
    from ..report.tables import verdicts
    from ..rewrite.evidence.artifact import verify_artifact

    begun = time.perf_counter()
    model, program, plan = (folder / name for name in (*FILES, "plan.json"))
    _train(out, folder)
    file = load_model(f"{model}:build")
    out.say(f"\n$ lissom plan {model}:build {program} -o {plan}")
    request = Request(str(program))
    planned = run_compile(file, read_program(request), request, out)
    planning.show_plan(out, planned)
    out.report(*remarks(planned, strict=False))
    write_file(plan, json_text(plan_document(planned, request), ordered=True).encode())
    result = folder / "small"
    out.say(f"\n$ lissom apply {model}:build --plan {plan} -o {result} --measure {SPLIT}")
    compiled, _ = apply_saved_plan(file, plan, out)
    planning.write_result(out, file, compiled, result, SPLIT)
    out.say(f"\n$ lissom verify {result}")
    found = verify_artifact(result)[1]
    verdicts(out, "verify", found)
    seconds = time.perf_counter() - begun
    out.fields["seconds"] = seconds
    out.say(f'\ndone in {seconds:.0f} s; load the result: lissom.load("{result}")')
    return 0 if all(verdict.holds for verdict in found) else 1


def _train(out: Output, folder: Path) -> None:
    """Train by the copied model file itself, so that what is shown is what is compressed."""
    from ..model_file import load_module

    begun = time.perf_counter()
    module = load_module(str(folder / FILES[0]))
    train: Callable[[], object] = module.train_and_save
    with out.progress("training"):
        train()
    seconds = time.perf_counter() - begun
    out.say(f"wrote {', '.join(FILES)} and weights.safetensors to {folder}")
    out.say(f"trained in {seconds:.1f} s on the digits that scikit-learn carries")
