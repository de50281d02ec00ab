"""`lissom sensitivity`: what a rule costs the model, place by place."""

from __future__ import annotations

import click

from ..options import set_option
from ..output import Output, command


@command(formats=("text", "json", "csv", "svg"))
@click.argument("model")
@click.argument("rule")
@click.option("--vary", metavar="NAME=A,B,...", help="A column for each value of a parameter.")
@click.option("--metric", metavar="NAME", help="Measure how far a metric falls, not the outputs.")
@click.option("--on", default="valid", show_default=True, metavar="SPLIT", help="Data of --metric.")
@click.option("--program", metavar="FILE", help="A rule file that declares or uses the rule.")
@click.option("--jobs", default=1, show_default=True, metavar="N", help="Processes that measure.")
@click.option("--cluster", metavar="ADDRESS", help="The scheduler of a dask cluster that measures.")
@set_option
def sensitivity(
    out: Output,
    model: str,
    rule: str,
    vary: str | None,
    metric: str | None,
    on: str,
    program: str | None,
    jobs: int,
    cluster: str | None,
    settings: tuple[str, ...],
) -> None:
    """Apply RULE at one place of MODEL at a time, and measure what that does to the whole model.

    A cell is the relative distance of the outputs on calibration data (on the example inputs where
    the program names none), or with --metric how far that metric falls. Nothing is written. Several
    processes need the extra `lissom[parallel]`.
    """
    from ..jobs.sensitivity import Question, measure_sensitivity
    from ..report import sensitivity as show

    name, _, values = (vary or "").partition("=")
    chosen = [value.strip() for value in values.split(",") if value.strip()]
    if vary and not chosen:
        raise click.BadParameter("write --vary ratio=10%,30%,50%", param_hint="--vary")
    question = Question(model, rule, program, settings, metric, on)
    with out.progress(f"measuring {rule}"):
        found = measure_sensitivity(question, name.strip(), chosen, jobs, cluster or "")
    out.fields |= show.fields(found)
    if out.format == "csv":
        click.echo(show.csv_text(found), nl=False)
    elif out.format == "svg":
        click.echo(show.svg(found, rule, name.strip(), metric))
    else:
        show.rows(out, found, name.strip(), metric)
