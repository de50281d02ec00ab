"""`lissom record`: what a model says of data, for students that learn from it."""

from __future__ import annotations

from pathlib import Path

import click

from ..output import Output, command


@command()
@click.argument("model")
@click.option("--split", default="train", show_default=True, help="Samples of this split.")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="The first N samples alone.")
def record(out: Output, model: str, split: str, output: str, count: int | None) -> None:
    """Ask MODEL about every sample of its file's data, and write the outputs to one file.

    A program follows them with `teacher = recorded("FILE")`, where FILE is found beside the
    program. MODEL is asked as it is and never looked into: it may call a service. The samples must
    be those that the program trains on, in the same order; N as in its `sample("train", N)`.
    """
    from ..jobs.recording import record_outputs
    from ..model_file import load_model

    with out.progress(f"asking {model}"):
        found = record_outputs(load_model(model), split, count, Path(output))
    out.fields |= found
    shape = ", ".join(map(str, found["shape"]))
    out.say(f"wrote {output}: outputs [{shape}] of {found['samples']:,} samples of {split}")
    out.say(f'follow them in a program beside it: teacher = recorded("{Path(output).name}")')
