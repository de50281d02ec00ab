"""An artifact in the format of another runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...grammar.diagnostics import Label, fail
from ..journal import Verdict
from ..store.files import write_file
from .compared import Whole, export_verdict
from .exit_parts import export_parts
from .exportable import Exportable, exportable

Make = Callable[[Exportable, Path], tuple[Sequence[Verdict], Sequence[Whole]]]
"""Writes a model to a file and says what the file computes, of parts and of the whole."""


def export_artifact(
    folder: Path, format: str, path: Path | None = None
) -> tuple[Path, tuple[Verdict, ...]]:
    """Writes the model of an artifact as "pt2" or "onnx", beside the folder where no path is given,
    and says how its outputs were compared. A model with exits becomes several files, and the path
    of what says how they go together is returned.

    Raises ValueError for another format; A041 where the file gives other outputs, and then nothing
    is written; A040 for a model that the format cannot hold, U010 for a package that is missing,
    U005 where the disk refuses.
    """
    target = path or folder.with_name(f"{folder.name}.{format}")
    maker, given = _maker(format), exportable(folder)
    if given.behind.rows:
        each = partial(_written, maker)
        return export_parts(given, given.behind, target, each)
    return target, write(given, maker, target)


def _written(
    maker: Callable[[Exportable], Make], given: Exportable, path: Path
) -> tuple[Verdict, ...]:
    return write(given, maker, path)


def write(
    given: Exportable, maker: Callable[[Exportable], Make], path: Path
) -> tuple[Verdict, ...]:
    """Writes the file beside, compares, and puts it in place. Sizes at which it would be wrong are
    made fixed: then it is written anew without them, and they are named.
    """
    make, left_out = maker(given), dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, path.name)
        parts, wholes = make(given, file)
        while broken := {k: v for whole in wholes for k, v in whole.broken.items()}:
            left_out |= broken
            kept = tuple(e for e in given.examples if e.label not in left_out)
            given = replace(given, examples=kept)
            parts, wholes = make(given, file)
        verdicts = (*parts, *(whole.verdict for whole in wholes), *_fixed(left_out))
        _require(given, path, verdicts)
        for part in (file.with_name(f"{file.name}.data"), file):  # the weights first
            if part.exists():
                write_file(path.with_name(part.name), part.read_bytes())
    return verdicts


def _fixed(left_out: dict[str, str]) -> list[Verdict]:
    if not left_out:
        return []
    detail = f"fixed, not as at {', '.join(left_out)}: {next(iter(left_out.values()))}"
    return [export_verdict("other sizes", "not checked", True, detail=detail)]


def _require(given: Exportable, path: Path, verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        if not verdict.holds:
            raise fail(
                "A041",
                f"`{path.name}` would not give the outputs of the model",
                Label(None, where=str(given.folder)),
                note=f"{verdict.claim}: {verdict.detail}",
                help="nothing was written; use the artifact, which is what was verified",
            )


def _maker(format: str) -> Callable[[Exportable], Make]:
    """What writes a format: ONNX needs packages that nothing else does."""
    if format == "pt2":
        from .pt2 import pt2

        return pt2
    if format != "onnx":
        raise ValueError(f"{format!r} is neither pt2 nor onnx")
    from .onnx_file import onnx_file

    return onnx_file
