"""`lissom verify`: whether a written model is the one that was verified, and still computes it."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import FAILED, Output, command


@command()
@click.argument("folder", metavar="OUT", type=click.Path())
def verify(out: Output, folder: str) -> int:
    """Check the written model OUT: hashes of all files, program, weights, and its outputs.

    The recorded inputs are run through it again; a model with integer layers runs once more in a
    process that logs every kernel. Nothing of the folder is executed.
    """
    from ..report import tables
    from ..rewrite.evidence.artifact import verify_artifact
    from ..rewrite.evidence.kernel_log import logged
    from ..rewrite.journal import plain
    from ..rewrite.measure.integer_layers import integer_layers
    from ..rewrite.store.folder import file_bytes

    loaded, found = verify_artifact(Path(folder))
    kernels = logged(Path(folder)) if integer_layers(loaded.module) else None
    verdicts = (*found, *([kernels] if kernels is not None else []))
    tables.verdicts(out, "verify", verdicts)
    nodes, size = len(loaded.module.graph.nodes), file_bytes(Path(folder))
    out.say(
        f"{folder}: {nodes} nodes, {size:,} bytes, written by lissom {_writer(loaded.manifest)}"
    )
    out.fields |= {"verdicts": [plain(v) for v in verdicts], "file_bytes": size}
    return 0 if all(verdict.holds for verdict in verdicts) else FAILED


def _writer(manifest: dict[str, object]) -> str:
    return f"{manifest['lissom']} with torch {manifest['torch']}"
