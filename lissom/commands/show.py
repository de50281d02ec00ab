"""`lissom show`: a model as rules see it: ops, settings, shapes, places, and what is opaque."""

from __future__ import annotations

import click

from ..output import Output, command


@command()
@click.argument("model")
@click.argument("at", required=False)
@click.option("--program", metavar="FILE", help="A rule file that declares ops of the model.")
def show(out: Output, model: str, at: str | None, program: str | None) -> None:
    """List the ops of MODEL as rules name them, or those AT a module path or glob.

    Each with its place, its settings that are not the default, what it gives, and the reason where
    no rule can see it. Nothing is changed.
    """
    from ..jobs.nodes import op_rows, shown_rows

    rows = op_rows(out, model, at, program)
    out.table([("place", "op", "settings", "gives"), *shown_rows(rows)], header=True)
    opaque = [row for row in rows if row.why]
    if opaque:
        out.say(f"\n{len(opaque)} of {len(rows)} are opaque: no rule sees into them")
        out.table([(row.place, row.why) for row in opaque])
    out.fields["ops"] = [row.as_json() for row in rows]
