"""Options that several commands share, each spelled once."""

from __future__ import annotations

import click

allow_option = click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["approx"]),
    help="Also apply approximate rules, within their budgets.",
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
    "--strict", is_flag=True, help="A rule that changes nothing is an error."
)
