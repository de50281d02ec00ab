"""How commands speak: text or JSON, terminal or pipe, and which exit code an error has."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .grammar.diagnostics import Diagnostic, LissomError, render
from .grammar.documents import json_text

if TYPE_CHECKING:
    from rich.console import Console

OK, FAILED, USAGE, MODEL, RUNTIME, CHANGES = 0, 1, 2, 3, 4, 10
"""Exit codes. `CHANGES` is what `plan --exit-code` says of a plan that is not empty."""

MISSING_PACKAGE = "U010"
_FAMILIES = {"V1": FAILED, "B0": FAILED, "A0": FAILED, "M0": MODEL}
WIDE = 10_000
"""Columns of a pipe: nothing is wrapped there, so that each row stays on one line."""


def exit_code(diagnostics: Iterable[Diagnostic]) -> int:
    """The exit code of the first error; 0 if there are only warnings and notes."""
    first = next((d.code for d in diagnostics if d.severity == "error"), None)
    if first is None:
        return OK
    return RUNTIME if first == MISSING_PACKAGE else _FAMILIES.get(first[:2], USAGE)


@dataclass
class Output:
    """Results go to stdout, errors and progress to stderr.

    With `format == "json"` stdout is one JSON object: `fields`, completed by the command, and the
    diagnostics of the run.
    """

    command: str
    format: str = "text"
    quiet: bool = False
    verbose: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    found: list[Diagnostic] = field(default_factory=list)

    @property
    def json(self) -> bool:
        return self.format == "json"

    def say(self, text: str = "") -> None:
        """A line of the result; silent with -q and with JSON."""
        if not self.quiet and not self.json:
            click.echo(text)

    def table(self, rows: Sequence[Sequence[str]], align: str = "", header: bool = False) -> None:
        """Rows under each other; `align` has `<` or `>` for each column, left where it ends."""
        if rows and not self.quiet and not self.json:
            print_table(self.console, rows, align, header)

    def report(self, *diagnostics: Diagnostic) -> None:
        """Errors always; warnings unless -q."""
        self.found += diagnostics
        for found in diagnostics:
            if not self.json and (found.severity == "error" or not self.quiet):
                print_diagnostic(found)

    def finish(self, code: int) -> int:
        """Write the JSON document, if one is wanted, and pass the exit code on."""
        if self.json:
            diagnostics = [found.as_json() for found in self.found]
            document = {"command": self.command, "exit": code, "diagnostics": diagnostics}
            click.echo(json_text(document | self.fields))
        return code

    @functools.cached_property
    def console(self) -> Console:
        return _console(sys.stdout)

    @contextmanager
    def progress(self, text: str) -> Iterator[Callable[[str, int, int], None]]:
        """Shows what is being done, on a terminal only. Yields a `pipeline.Progress`."""
        if self.quiet or self.json or not sys.stderr.isatty():
            yield lambda stage, done, total: None
            return
        with _console(sys.stderr).status(text) as status:
            yield lambda stage, done, total: status.update(
                f"{text}: {stage} ({done + 1} of {total})"
            )


def _console(file: Any) -> Console:
    from rich.console import Console

    width = None if file.isatty() else WIDE
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def print_table(
    console: Console, rows: Sequence[Sequence[str]], align: str = "", header: bool = False
) -> None:
    """One table; its first row is a header if `header`."""
    from rich.table import Table
    from rich.text import Text

    columns = max(map(len, rows), default=0)
    shown = Table(box=None, show_header=header, padding=(0, 2, 0, 0), pad_edge=False)
    titles = rows[0] if header else [""] * columns
    for index in range(columns):
        right = align[index : index + 1] == ">"
        title = titles[index] if index < len(titles) else ""
        shown.add_column(Text(title), justify="right" if right else "left", header_style="bold")
    for row in rows[header:]:
        shown.add_row(*map(Text, row))
    with console.capture() as captured:
        console.print(shown)
    lines = captured.get().splitlines()
    console.file.write("".join(f"{line.rstrip()}\n" for line in lines))


def print_diagnostic(found: Diagnostic) -> None:
    """The frame on stderr; its first line in colour where colour is wanted."""
    first, _, rest = render(found).partition("\n")
    colour = "red" if found.severity == "error" else "yellow"
    plain = "NO_COLOR" in os.environ or not sys.stderr.isatty()
    click.echo(first if plain else click.style(first, fg=colour, bold=True), err=True)
    click.echo(f"{rest}\n" if rest else "", err=True)


# -- what every command has in common --------------------------------------------------------------


def command(
    name: str | None = None, formats: Sequence[str] = ("text", "json"), **settings: Any
) -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command whose function takes an `Output` first and returns an exit code or None.

    It gives every command --format, -q and -v, and renders every error.
    """

    def wrap(function: Callable[..., int | None]) -> click.Command:
        called = name or function.__name__

        @functools.wraps(function)
        def run(format: str, quiet: bool, verbose: int, **given: Any) -> None:
            out = Output(called, format, quiet, verbose)
            click.get_current_context().exit(_guarded(function, out, given))

        return click.command(called, **settings)(_common(run, formats))

    return wrap


def _common(run: Callable[..., None], formats: Sequence[str]) -> Callable[..., None]:
    choice = click.Choice(list(formats))
    for option in (
        click.option("-v", "--verbose", count=True, help="Say more; also what is no news."),
        click.option("-q", "--quiet", is_flag=True, help="Only errors and the exit code."),
        click.option("--format", type=choice, default=formats[0], show_default=True),
    ):
        run = option(run)
    return run


def _guarded(function: Callable[..., int | None], out: Output, given: dict[str, Any]) -> int:
    """Runs a command. Every error becomes a diagnostic; LISSOM_TRACEBACK=1 adds Python's own."""
    try:
        return out.finish(function(out, **given) or OK)
    except LissomError as error:
        _traceback()
        out.report(*error.diagnostics)
        return out.finish(exit_code(error.diagnostics))
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except (Exception, SystemExit) as error:
        # A model that ends Python must not end in exit code 0 with nothing written.
        _traceback()
        found = _unexpected(error)
        out.report(found)
        return out.finish(exit_code([found]))


def _traceback() -> None:
    if os.environ.get("LISSOM_TRACEBACK") == "1":
        click.echo(traceback.format_exc(), err=True)


def _unexpected(error: BaseException) -> Diagnostic:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return Diagnostic(
            MISSING_PACKAGE,
            f"the package `{package}` is not installed",
            helps=(f"pip install {package}",),
        )
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        hint = "remove the call of exit() or sys.exit()"
        return Diagnostic("U099", "the model's own code ended Python", notes=(text,), helps=(hint,))
    if isinstance(error, MemoryError):
        hint = "use smaller example inputs or batches, or a machine with more memory"
        return Diagnostic("U099", "there is not enough memory", notes=(text,), helps=(hint,))
    return Diagnostic(
        "U099",
        "lissom itself failed",
        notes=(text,),
        helps=("run again with LISSOM_TRACEBACK=1 and report what it prints",),
    )
