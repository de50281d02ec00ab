"""Options that several commands share, each spelled once."""

from __future__ import annotations

import click

APPROXIMATE = ("approx",)
"""Kinds of rules that change outputs, each within the budget that it declares."""

allow_option = click.option(
    "--allow",
    default="approx",
    type=click.Choice(["exact", "approx"]),
    callback=lambda context, option, value: APPROXIMATE if value == "approx" else (),
    help="`exact` leaves the approximate rules of a program out; the default applies them, within "
    "their budgets.",
)

set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a parameter of the pipeline: --set target=45%.",
)

pipeline_option = click.option("--pipeline", metavar="NAME", help="Which pipeline of the program.")

strict_option = click.option(
    "--strict",
    is_flag=True,
    help="A rule that changes nothing is an error, and an integer layer without a kernel.",
)
