"""An artifact in the format of another runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...grammar.diagnostics import Label, fail
from ..journal import Verdict
from .exportable import Exportable, exportable
from .pt2 import write_pt2

Write = Callable[[Exportable, Path], tuple[Verdict, ...]]


def export_artifact(
    folder: Path, format: str, path: Path | None = None
) -> tuple[Path, tuple[Verdict, ...]]:
    """Writes the model of an artifact as "pt2" or "onnx", beside the folder where no path is given,
    and says how its outputs were compared.

    Raises ValueError for another format; A041 where the file gives other outputs, and then nothing
    is written; A040 for a model that the format cannot hold, U010 for a package that is missing,
    U005 where the disk refuses.
    """
    target = path or folder.with_name(f"{folder.name}.{format}")
    verdicts = _writer(format)(exportable(folder), target)
    broken = [verdict for verdict in verdicts if not verdict.holds]
    for verdict in broken[:1]:
        apart = f"{verdict.worst:.2g} > {verdict.tolerance:.2g}, " if verdict.worst else ""
        raise fail(
            "A041",
            f"the .{format} file does not give the outputs of the model",
            Label(None, where=str(folder)),
            note=f"{verdict.claim}: {apart}{verdict.detail}",
            help="nothing was written; keep the artifact, which is what was verified",
        )
    return target, verdicts


def _writer(format: str) -> Write:
    """What writes a format: ONNX needs packages that nothing else does."""
    if format == "pt2":
        return write_pt2
    if format != "onnx":
        raise ValueError(f"{format!r} is neither pt2 nor onnx")
    from .onnx_file import write_onnx

    return write_onnx
