"""`lissom fmt`: the canonical layout of rule files."""

from __future__ import annotations

import difflib
from pathlib import Path

import click

from ..grammar.fmt.format import format_text
from ..grammar.text.parse import read_text
from ..output import FAILED, Output, command
from ..rewrite.store.files import write_file
from .check import rule_files


@command()
@click.argument("files", nargs=-1, required=True)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file would change.")
@click.option("--diff", is_flag=True, help="Write nothing; show what would change.")
def fmt(out: Output, files: tuple[str, ...], check: bool, diff: bool) -> int:
    """Write FILES, and the rule files in folders, in the canonical layout.

    Comments and meaning stay; formatting twice changes nothing. Needs no torch.
    """
    paths = rule_files(files)
    changed = [path for path in paths if _format(out, path, check or diff, diff)]
    for path in changed if not diff else []:
        out.say(f"{'would reformat' if check else 'reformatted'} {path}")
    out.say(f"{len(paths)} checked, {len(changed)} {'to change' if check or diff else 'changed'}")
    out.fields |= {"checked": len(paths), "changed": [str(path) for path in changed]}
    return FAILED if changed and (check or diff) else 0


def _format(out: Output, path: Path, keep: bool, diff: bool) -> bool:
    """Whether the layout of a file is another one; written unless it is to be kept."""
    old = read_text(path)
    new = format_text(old, str(path))
    if new == old:
        return False
    if diff:
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), str(path), f"{path} (formatted)", lineterm=""
        )
        out.say("\n".join(lines))
    if not keep:
        write_file(path, new.encode())
    return True
