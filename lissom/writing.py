"""Writes one file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .grammar.diagnostics import Label, fail


def write_file(path: Path, content: bytes) -> None:
    """Write so that a reader sees the old file or the whole new one. Raises U005 where it fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
    except OSError as error:
        place = Label(None, where=str(path))
        hint = "choose a place that can be written to"
        raise fail("U005", f"cannot write `{path}`: {error.strerror}", place, help=hint) from error


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as part:
            part.write(content)
        # A temporary file is private to its owner; what replaces a file keeps that file's mode.
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
