"""`lissom pages`: what rules do and what was shown about them, as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from ..grammar.checks.check import check_program
from ..grammar.diagnostics import LissomError
from ..grammar.library.program import Program, load_program
from ..output import FAILED, Output, command
from ..rewrite.store.files import write_file
from .check import rule_files


@command()
@click.argument("files", nargs=-1, required=True)
@click.option("--certificate", metavar="FILE", required=True, help="What `lissom test` wrote.")
@click.option("--out", "folder", metavar="FOLDER", required=True, help="Where the pages go.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a page would change.")
def pages(out: Output, files: tuple[str, ...], certificate: str, folder: str, check: bool) -> int:
    """Write a page for each of FILES, and of the rule files in folders, and an index of all rules.

    A page shows what a rule does, when it applies, a picture of both sides, and the evidence that
    `lissom test FILES --certificate FILE` wrote. Files without rules are passed over. Needs no
    torch.
    """
    written = _documents(files, Path(certificate), Path(folder))
    changed = [path for path, text in written.items() if _old(path) != text.encode()]
    for path in changed:
        if not check:
            write_file(path, written[path].encode())
        out.say(f"{'would write' if check else 'wrote'} {path}")
    out.say(f"{len(written)} pages, {len(changed)} {'to change' if check else 'changed'}")
    out.fields |= {"pages": [str(path) for path in written], "changed": list(map(str, changed))}
    return FAILED if changed and check else 0


def _documents(files: tuple[str, ...], certificate: Path, folder: Path) -> dict[Path, str]:
    """Every page with its path. Raises the first file's errors, if it does not check."""
    from ..report.evidence import read_evidence
    from ..report.rule_pages import documents, pages_of

    evidence = read_evidence(certificate)
    programs = {path: _checked(path) for path in rule_files(files)}
    pages = pages_of(programs, evidence, folder)
    return {folder / name: text for name, text in documents(pages, evidence).items()}


def _checked(path: Path) -> Program:
    """A program without errors: a page about any other would show what cannot be."""
    program = load_program(path)
    errors = [found for found in check_program(program) if found.severity == "error"]
    if errors:
        raise LissomError(*errors)
    return program


def _old(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
