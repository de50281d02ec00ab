"""`lissom bench`: how long a written model takes."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import Output, command


@command()
@click.argument("folder", metavar="OUT", type=click.Path())
@click.option("--data", "model", metavar="MODEL", help="Take samples from this model's file.")
@click.option("--split", default="valid", show_default=True, help="Samples of this split.")
@click.option(
    "--batch",
    "sizes",
    type=click.IntRange(min=1),
    multiple=True,
    help="Batch size; may be repeated.",
)
@click.option("--seconds", type=click.FloatRange(min=0), default=2.0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch.")
def bench(
    out: Output,
    folder: str,
    model: str | None,
    split: str,
    sizes: tuple[int, ...],
    seconds: float,
    threads: int | None,
) -> None:
    """Measure the written model OUT: milliseconds of a batch, mean, median and 99th percentile.

    A model with exits is run in all its ways, in turns: each sample leaving where it may, none, and
    all at each exit. Samples come from the data of a model file, as they were compressed with; the
    recorded example serves without.
    """
    import torch

    from ..jobs.benching import bench as measured
    from ..model_file import load_model
    from ..report import tables

    if threads is not None:
        torch.set_num_threads(threads)
    file = None if model is None else load_model(model)
    with out.progress(f"measuring {folder}"):
        rows = measured(Path(folder), file, split, sizes or (1,), seconds)
    tables.bench(out, rows)
    count = torch.get_num_threads()
    out.say(f"torch {torch.__version__}, {count} thread{'s'[: count - 1]}, in turns")
    out.fields |= {
        "rows": [row.as_json() for row in rows], "threads": count, "torch": torch.__version__,
    }  # fmt: skip
