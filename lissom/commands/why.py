"""`lissom why`: the funnel of one rule on one model, and its nearest misses."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..options import set_option
from ..output import Output, command


@command()
@click.argument("model")
@click.argument("rule")
@click.argument("at", required=False)
@click.option("--program", metavar="FILE", help="A rule file that declares or uses the rule.")
@set_option
def why(
    out: Output,
    model: str,
    rule: str,
    at: str | None,
    program: str | None,
    settings: tuple[str, ...],
) -> int:
    """Say why RULE does or does not match MODEL, or the part of it AT a module path or glob.

    Counts how many candidates pass each condition of the rule, and shows the nearest misses. The
    model is asked as it is, before any other rule. Nothing is applied.
    """
    from ..jobs.explaining import ask
    from ..report import tables
    from ..rewrite.explain.funnel import NEAREST

    near = NEAREST + 7 * out.verbose
    found, opaque, weighing = ask(out, model, rule, at, program, settings, near)
    tables.funnel(out, found)
    for name, reason in opaque:
        out.say(f"no rule can see {name}: {reason}")
    tables.opaque(out, weighing)
    weights = {str(node): node.params for node in weighing if node.params}
    out.fields |= {"funnel": _as_json(found), "opaque": dict(opaque), "opaque_parameters": weights}
    if not out.quiet:
        out.report(*(near.diagnostic() for near in found.nearest))
    return 0


def _as_json(found: object) -> dict[str, object]:
    """The funnel without the spans of its misses, which the diagnostics show."""
    table = asdict(found)  # type: ignore[call-overload]
    for near in table["nearest"]:
        del near["span"]
    return table
