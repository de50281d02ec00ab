"""`lissom check`: everything that can be known to be wrong with a rule file without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ..grammar.checks.check import check_program
from ..grammar.diagnostics import Diagnostic, LissomError, fail
from ..grammar.library.program import load_program
from ..output import Output, command, exit_code
from ..report.formats import FORMATS


@command(formats=("text", "json", "sarif", "github"))
@click.argument("files", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="A warning is an error.")
def check(out: Output, files: tuple[str, ...], strict: bool) -> int:
    """Check FILES, and the rule files in folders: syntax, names, shapes, guards, promises.

    Needs neither a model nor torch.
    """
    paths = rule_files(files)
    # A file that others use is checked with each of them.
    found = list(dict.fromkeys(diagnostic for path in paths for diagnostic in check_path(path)))
    wanted = FORMATS.get(out.format)
    if wanted is not None:
        click.echo(wanted(found))
    else:
        out.report(*found)
        out.say(_summary(len(paths), found))
    if strict and found:
        return exit_code(found) or 2
    return exit_code(found)


def rule_files(names: Sequence[str]) -> list[Path]:
    """The named files, and every `.lissom` file below the named folders. Raises U002."""
    paths = []
    for name in names:
        path = Path(name)
        inside = sorted(path.rglob("*.lissom")) if path.is_dir() else [path]
        if not inside:
            raise fail(
                "U002", f"there is no rule file in `{name}`", help="rule files end in .lissom"
            )
        paths += inside
    return paths


def check_path(path: Path) -> Iterator[Diagnostic]:
    """What is wrong with one file. A file that cannot be read is one diagnostic, not an end."""
    try:
        yield from check_program(load_program(path))
    except LissomError as error:
        yield from error.diagnostics


def _summary(files: int, found: Sequence[Diagnostic]) -> str:
    errors = sum(diagnostic.severity == "error" for diagnostic in found)
    warnings = sum(diagnostic.severity == "warning" for diagnostic in found)
    return f"{_count(files, 'file')}: {_count(errors, 'error')}, {_count(warnings, 'warning')}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
