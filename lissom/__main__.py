"""The program `lissom`: runs a command; what click finds wrong becomes a diagnostic."""

from __future__ import annotations

import itertools
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
        return _misused(error, sys.argv[1:] if argv is None else argv)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `head` does. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _misused(error: click.ClickException, argv: Sequence[str]) -> int:
    """Nothing is known of an unreadable command line, so --format is looked for anywhere in it."""
    from .grammar.diagnostics import Diagnostic
    from .output import USAGE, Output

    context = error.ctx if isinstance(error, click.UsageError) else None
    usage = (context.get_usage(),) if context is not None else ()
    helps = (f"{context.command_path} --help",) if context is not None else ()
    called = context.info_name if context is not None else None
    out = Output(called or "lissom", "json" if _wants_json(argv) else "text")
    out.report(Diagnostic("U001", error.format_message(), (), usage, helps))
    return out.finish(USAGE)


def _wants_json(argv: Sequence[str]) -> bool:
    return "--format=json" in argv or ("--format", "json") in itertools.pairwise(argv)


if __name__ == "__main__":
    sys.exit(main())
