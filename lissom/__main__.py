"""The program `lissom`: runs a command; what click finds wrong becomes a diagnostic."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

INTERRUPTED = 130
"""What shells expect of a program that was stopped from the keyboard."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, one of those in `output`."""
    from .cli import cli

    try:
        return cli.main(args=argv, prog_name="lissom", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _misused(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `head` does. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _misused(error: click.ClickException) -> int:
    from .grammar.diagnostics import Diagnostic, render

    context = error.ctx if isinstance(error, click.UsageError) else None
    usage = (context.get_usage(),) if context is not None else ()
    helps = (f"{context.command_path} --help",) if context is not None else ()
    click.echo(render(Diagnostic("U001", error.format_message(), (), usage, helps)), err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
