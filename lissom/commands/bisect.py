"""`lissom bisect`: which rewrite breaks what a pipeline promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..options import allow_option, pipeline_option, set_option
from ..output import FAILED, Output, command

if TYPE_CHECKING:
    from ..rewrite.explain.bisect import Culprit
    from ..rewrite.journal import Verdict


@command()
@click.argument("model")
@click.argument("program")
@set_option
@allow_option
@pipeline_option
def bisect(
    out: Output,
    model: str,
    program: str,
    settings: tuple[str, ...],
    allow: tuple[str, ...],
    pipeline: str | None,
) -> int:
    """Find the first rewrite with which PROGRAM breaks an equality or a budget on MODEL.

    Compiles MODEL again and again with half as many rewrites. Nothing is written.
    """
    from ..jobs.compiling import Request, read_program, run_compile
    from ..model_file import load_model
    from ..rewrite.explain.bisect import bisect as search

    file, request = load_model(model), Request(program, pipeline, settings, allow)
    read = read_program(request)
    found = search(
        lambda fuel, journal, sites: run_compile(file, read, request, out, fuel, journal, sites)
    )
    if found is None:
        out.say("nothing breaks")
        return 0
    _show(out, found)
    return FAILED


def _show(out: Output, found: Culprit) -> None:
    from ..rewrite.journal import plain

    event = found.event
    out.say(f"rewrite {found.number} breaks it: {event.rule} at {event.site}, stage {event.stage}")
    out.say(f"  {found.after.broken}")
    out.say(f"  the rule stands at {event.place}")
    rows = [
        (claim, _shown(found.before.verdicts.get(claim)), _shown(verdict))
        for claim, verdict in found.after.verdicts.items()
    ]
    out.table([("claim", "without it", "with it"), *rows], header=True)
    out.fields |= {"number": found.number, "why": found.after.broken, "event": plain(event)}


def _shown(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not asked"
    return f"{'ok' if verdict.holds else 'BROKEN'}  {verdict.detail}"
