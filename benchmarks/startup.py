"""How long the command line takes to start: `lissom --help`, and `lissom check` of 300 lines.

    python benchmarks/startup.py [--rounds 15]

Time of a fresh process with warm file caches; beside it, a bare Python. The processes may write and
read compiled modules, as they do after an installation, whatever PYTHONDONTWRITEBYTECODE says. The
checked program is made of rules of the library under names of its own, and must pass.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import report

from lissom.grammar.library.vocabulary import library_sources

LINES = 300
_RULE = re.compile(r"^exact rule (\w+).*?^}\n", re.M | re.S)
_EXTERN = re.compile(r"^extern fn .*\n", re.M)
_BARE = "`python -c pass`"


def program(lines: int = LINES) -> str:
    """A program of exactly so many lines: the library's exact rules, renamed, and a pipeline."""
    texts = [s.text for s in library_sources() if _RULE.search(s.text)]
    externs = dict.fromkeys(found for text in texts for found in _EXTERN.findall(text))
    body, names = "".join(externs), []
    for rule in (match for text in texts for match in _RULE.finditer(text)):
        renamed = re.sub(rf"\b{rule[1]}\b", f"own_{rule[1]}", rule[0])
        if _lines(body + renamed) + 8 < lines:
            body, names = f"{body}\n{renamed}", [*names, f"own_{rule[1]}"]
    steps = "\n".join(f"    once {name}" for name in names[:3])
    body += f"\npipeline own {{\n  stage fold {{\n{steps}\n  }}\n}}\n"
    return body + "# The rest of the file is a comment.\n" * (lines - _lines(body))


def _lines(text: str) -> int:
    return text.count("\n")


class Seconds(NamedTuple):
    wall: float
    cpu: float
    """User and system time: other programs on the machine disturb it little."""


def seconds(command: Sequence[str]) -> Seconds:
    """How long one run takes. Raises CalledProcessError where it fails."""
    before, begun = _child_cpu(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, stdin=DEVNULL, env=environment())
    return Seconds(time.perf_counter() - begun, _child_cpu() - before)


def environment() -> dict[str, str]:
    """Compiled modules are kept, so that only the first run of all compiles them."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _child_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def commands(path: Path) -> dict[str, list[str]]:
    python = sys.executable
    lissom = [python, "-m", "lissom"]
    return {
        "`lissom --help`": [*lissom, "--help"],
        f"`lissom check`, {LINES} lines": [*lissom, "check", str(path)],
        _BARE: [python, "-c", "pass"],
    }


def measure(rounds: int) -> dict[str, list[Seconds]]:
    """Interleaved rounds; a first one warms the caches and compiles, and is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.lissom")
        path.write_text(program())
        tasks = commands(path)
        runs = [{name: seconds(task) for name, task in tasks.items()} for _ in range(rounds + 1)]
    return {name: [run[name] for run in runs[1:]] for name in tasks}


def row(name: str, times: Sequence[Seconds]) -> list[str]:
    wall, cpu = [t.wall for t in times], [t.cpu for t in times]
    return [name, *map(report.seconds, (statistics.median(wall), min(wall), min(cpu)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    rows = [row(*item) for item in measure(rounds).items()]
    print(report.table(["command", "median", "least", "least CPU"], rows))
    print(
        f"\nWall time and user and system time of {rounds} interleaved rounds, after one that wrote"
        " compiled modules and warmed the file caches."
    )
    print(f"\n{report.machine()}.")


if __name__ == "__main__":
    main()
