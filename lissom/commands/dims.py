"""`lissom dims`: which dimensions a model has, what each costs, and why some cannot be cut."""

from __future__ import annotations

import click

from ..output import Output, command


@command(formats=("text", "json", "mermaid"))
@click.argument("model")
@click.option("--at", metavar="GLOB", help="Only dimensions of a parameter at this path or glob.")
@click.option("--blocked", is_flag=True, help="Only what cannot be cut, counted by reason.")
@click.option("--coupling", is_flag=True, help="The axes that stand and fall together.")
@click.option("--program", metavar="FILE", help="A rule file that declares ops of the model.")
def dims(
    out: Output, model: str, at: str | None, blocked: bool, coupling: bool, program: str | None
) -> None:
    """List the dimensions of MODEL: what rules with `match dim` can cut.

    A dimension is a set of features that stand in the same axes of the same parameters: one feature
    goes from all of them or from none. `--format mermaid` draws which layers share which dimension.
    Nothing is changed.
    """
    from ..jobs.explaining import dimensions
    from ..report import dims as show_dims
    from ..report import tables

    found = dimensions(out, model, at, program, blocked)
    out.fields |= show_dims.fields(found)
    if out.format == "mermaid":
        click.echo(show_dims.flowchart(found))
        return
    show_dims.total(out, found)
    tables.opaque(out, found.opaque)
    if blocked:
        show_dims.reasons(out, found)
    elif coupling:
        show_dims.trees(out, found)
    else:
        show_dims.rows(out, found)
