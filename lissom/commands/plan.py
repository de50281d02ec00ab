"""`lissom plan`: what a program would do to a model; saved, it can be done exactly."""

from __future__ import annotations

from pathlib import Path

import click

from ..grammar.diagnostics import Diagnostic
from ..grammar.documents import json_text
from ..options import allow_option, pipeline_option, set_option, strict_option
from ..output import CHANGES, FAILED, Output, command, exit_code
from ..rewrite.store.files import write_file


@command()
@click.argument("model")
@click.argument("program", required=False)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the plan here.")
@set_option
@allow_option
@pipeline_option
@strict_option
@click.option("--latency", is_flag=True, help="Measure milliseconds for each place.")
@click.option(
    "--exit-code", "changes", is_flag=True, help="Exit with 10 when the plan is not empty."
)
def plan(
    out: Output,
    model: str,
    program: str | None,
    output: str | None,
    settings: tuple[str, ...],
    allow: tuple[str, ...],
    pipeline: str | None,
    strict: bool,
    latency: bool,
    changes: bool,
) -> int:
    """Show what PROGRAM would do to MODEL: sites of each rule, misses, predicted costs, and for
    each place ops, bits, bytes and the kernel that runs; with --latency milliseconds, too.

    PROGRAM is a rule file, or the name of a rule of the library, whose parameters --set gives;
    without it all exact rules of the library are tried.

    Everything is computed and verified as `apply` does it, but nothing is written except the plan.
    Approximate rules of a program are applied within their budgets; --allow exact leaves them out.
    """
    from ..jobs.compiling import Request, plan_document, read_program, remarks, run_compile
    from ..model_file import load_model
    from ..report import planning

    request = Request(program or "", pipeline, settings, allow)
    read = read_program(request)
    kept = Path(f"{output}.checkpoints") if output is not None else None
    compiled = run_compile(load_model(model), read, request, out, checkpoints=kept)
    planning.show_plan(out, compiled, program is not None, latency)
    document = plan_document(compiled, request)
    out.fields["plan"] = document
    if output is not None:
        write_file(Path(output), json_text(document, ordered=True).encode())
        out.say(f"wrote {output}; next: lissom apply {model} --plan {output} -o OUT")
    found = remarks(compiled, strict) if program is not None else []
    out.report(*found)
    return _code(found, compiled.verified, changes and bool(compiled.applied))


def _code(found: list[Diagnostic], verified: bool, changes: bool) -> int:
    if not verified:
        return FAILED
    return exit_code(found) or (CHANGES if changes else 0)
