"""`lissom verify`: whether a written model is the one that was verified, and still computes it."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import FAILED, Output, command


@command()
@click.argument("folder", metavar="OUT", type=click.Path())
def verify(out: Output, folder: str) -> int:
    """Check the written model OUT: hashes of all files, program, weights, and its outputs.

    The recorded inputs are run through it again. Nothing of the folder is executed.
    """
    from ..report import tables
    from ..rewrite.evidence.artifact import verify_artifact
    from ..rewrite.journal import plain
    from ..rewrite.store.folder import file_bytes

    loaded, verdicts = verify_artifact(Path(folder))
    tables.verdicts(out, "verify", verdicts)
    nodes, size = len(loaded.module.graph.nodes), file_bytes(Path(folder))
    out.say(
        f"{folder}: {nodes} nodes, {size:,} bytes, written by lissom {_writer(loaded.manifest)}"
    )
    out.fields |= {"verdicts": [plain(v) for v in verdicts], "file_bytes": size}
    return 0 if all(verdict.holds for verdict in verdicts) else FAILED


def _writer(manifest: dict[str, object]) -> str:
    return f"{manifest['lissom']} with torch {manifest['torch']}"
