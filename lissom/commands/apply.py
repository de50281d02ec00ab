"""`lissom apply`: compress a model, verify the result, write it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..grammar.diagnostics import fail
from ..options import allow_option, pipeline_option, set_option, strict_option
from ..output import Output, command, exit_code

if TYPE_CHECKING:
    from ..jobs.compiling import Request
    from ..model_file import ModelFile
    from ..rewrite.pipeline.compile import Compiled


@command()
@click.argument("model")
@click.argument("program", required=False)
@click.option("--plan", type=click.Path(dir_okay=False), help="Do exactly what this plan says.")
@click.option("-o", "--output", required=True, type=click.Path(), help="The folder to write.")
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False),
    help="Where trainings write after each epoch how far they came; the same command goes on from "
    "there. By default beside the output, until that is written.",
)
@click.option("--measure", metavar="SPLIT", help="Measure every metric of the model file on it.")
@set_option
@allow_option
@pipeline_option
@strict_option
def apply(
    out: Output,
    model: str,
    program: str | None,
    plan: str | None,
    output: str,
    checkpoints: str | None,
    measure: str | None,
    settings: tuple[str, ...],
    allow: tuple[str, ...],
    pipeline: str | None,
    strict: bool,
) -> int:
    """Compress MODEL by PROGRAM, or exactly as a saved plan says, and write it to a folder.

    PROGRAM is a rule file, or the name of a rule of the library.

    The written model is loaded in a fresh process and must give the same outputs, bit for bit.
    Then sizes, latency and, with --measure, metrics are measured before and after.
    """
    given = bool(settings or pipeline)
    _check_usage(program, plan, given)
    from ..jobs.compiling import Request, is_main_process, remarks
    from ..model_file import load_model
    from ..report import planning

    file = load_model(model)
    kept = Path(checkpoints or f"{plan or output}.checkpoints")
    if plan is not None:
        compiled = _by_plan(out, file, Path(plan), allow, kept)
    else:
        compiled = _by_program(out, file, Request(program or "", pipeline, settings, allow), kept)
    if not is_main_process():
        return 0
    found = remarks(compiled, strict)
    out.report(*found)
    if exit_code(found):
        return exit_code(found)
    planning.show_rules(out, compiled)
    planning.write_result(out, file, compiled, Path(output), measure)
    if checkpoints is None:
        shutil.rmtree(kept, ignore_errors=True)
    out.say(
        f'wrote {output}; load it with lissom.load("{output}"); check it: lissom verify {output}'
    )
    return 0


def _check_usage(program: str | None, plan: str | None, given: bool) -> None:
    if (program is None) == (plan is None):
        hint = "lissom apply MODEL PROGRAM -o OUT, or lissom apply MODEL --plan plan.json -o OUT"
        raise fail("U001", "`apply` needs a program or a plan, and not both", help=hint)
    if plan is not None and given:
        hint = "make a new plan with these settings"
        raise fail("U001", "a plan keeps its own --set and --pipeline", help=hint)


def _by_program(out: Output, file: ModelFile, request: Request, kept: Path) -> Compiled:
    from ..jobs.compiling import read_program, run_compile

    return run_compile(file, read_program(request), request, out, checkpoints=kept)


def _by_plan(
    out: Output, file: ModelFile, path: Path, allow: tuple[str, ...], kept: Path
) -> Compiled:
    """A plan knows what it may do; a word about it that is given here must be the plan's."""
    from ..jobs.compiling import apply_saved_plan, read_plan

    _, request = read_plan(path)
    source = click.get_current_context().get_parameter_source("allow")
    if source is not ParameterSource.DEFAULT and allow != request.allow:
        asked, made = ("approx", "without") if allow else ("exact", "with")
        hint = f"make a new plan with --allow {asked}"
        raise fail("U001", f"the plan was made {made} approximate rules", help=hint)
    return apply_saved_plan(file, path, out, kept)[0]
