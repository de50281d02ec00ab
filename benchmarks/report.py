"""Markdown tables, the machine they were measured on, and the page that holds them.

    python benchmarks/report.py docs/benchmarks.md

runs rewriting.py, folding.py and startup.py, and writes what they print between the markers
`<!-- benchmark NAME -->` and `<!-- end NAME -->` of the page.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = ("rewriting", "folding", "startup")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is set to the right."""
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def seconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def times(value: float) -> str:
    """How many times as long."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def machine() -> str:
    """Processor, cores, Python, torch and its threads, in one line."""
    import torch

    from lissom.rewrite.measure.processor import processor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [processor()["cpu"], f"{cores} cores", f"Python {platform.python_version()}"]
    threads = torch.get_num_threads()
    named = "1 thread" if threads == 1 else f"{threads} threads"
    return ", ".join([*parts, f"torch {torch.__version__}", named])


def put(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of `name`. Raises ValueError if they are missing."""
    start, end = f"<!-- benchmark {name} -->", f"<!-- end {name} -->"
    head, found, rest = page.partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no markers {start} ... {end}")
    return f"{head}{start}\n{text.strip()}\n{end}{tail}"


def main() -> None:
    page = Path(sys.argv[1])
    for name in SCRIPTS:
        script = Path(__file__).with_name(f"{name}.py")
        print(f"{name} ...", flush=True)
        done = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        done.check_returncode()
        page.write_text(put(page.read_text(), name, done.stdout))


if __name__ == "__main__":
    main()
