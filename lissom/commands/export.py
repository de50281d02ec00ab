"""`lissom export`: a written model as a file for another runtime."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import Output, command


@command(formats=("pt2", "onnx"))
@click.argument("folder", metavar="OUT", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="The file; OUT.pt2, OUT.onnx."
)
@click.option("--json", is_flag=True, help="Print one JSON object.")
def export(out: Output, folder: str, output: str | None, json: bool) -> None:
    """Write the model OUT for torch.export or ONNX Runtime, and compare what the file computes.

    OUT is what `lissom apply` wrote. The recorded inputs are run through the new file first: .pt2
    in a fresh process without lissom, bit for bit; .onnx in ONNX Runtime where that is installed
    (pip install "lissom[onnx]"), integer layers code for code. What differs is not written.
    """
    from ..report import tables
    from ..rewrite.export.export import export_artifact
    from ..rewrite.journal import plain

    format, out.format = out.format, "json" if json else "text"
    path = Path(output) if output else None
    with out.progress(f"exporting {folder}"):
        written, verdicts = export_artifact(Path(folder), format, path)
    tables.verdicts(out, "export", verdicts)
    size = written.stat().st_size
    out.say(f"wrote {written}, {size:,} bytes")
    out.fields |= {
        "output": str(written), "file_bytes": size, "verdicts": [plain(v) for v in verdicts],
    }  # fmt: skip
