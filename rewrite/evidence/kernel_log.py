"""Which kernels a written model really runs: not what its layers say, but what oneDNN logs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from ..journal import Verdict, VerdictKind
from ..measure.integer_layers import PLAIN

LOGGED = "integer layers run integer kernels, by oneDNN's log"


def logged(folder: Path) -> Verdict | None:
    """Runs an artifact on its first example in a process of its own, which logs each kernel. None
    where it has no integer layers.
    """
    command = [sys.executable, "-c", _RUN, str(folder)]
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said, _, log = done.stdout.partition(_MARK)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Verdict(LOGGED, "tested", False, 1, detail=why, kind=VerdictKind.ARTIFACT)
    found = re.findall(r"^layer (\d+) (.*)$", said, re.M)
    return judged([(int(times), ran) for times, ran in found], integer_kernels(log))


def judged(layers: list[tuple[int, str]], kernels: Counter[str]) -> Verdict | None:
    """Whether the log holds as many integer kernels as the layers ran. layers: how often each, and
    what it says that it runs.
    """
    if not layers:
        return None
    plain = Counter(ran for times, ran in layers if ran.startswith(PLAIN))
    wanted = sum(times for times, ran in layers if not ran.startswith(PLAIN))
    seen = sum(kernels.values())
    parts = [f"{seen} of {wanted}", *(f"{name} x {n}" for name, n in kernels.most_common())]
    parts += [f"{n} in {ran}" for ran, n in plain.most_common()]
    held, detail = seen == wanted, ", ".join(parts)
    return Verdict(LOGGED, "tested", held, 1, detail=detail, kind=VerdictKind.ARTIFACT)


def integer_kernels(log: str) -> Counter[str]:
    """The implementations in a log of oneDNN that read bytes and int8 weights."""
    lines = (line for line in log.splitlines() if ",exec,cpu," in line)
    return Counter(
        m[1]
        for line in lines
        if (m := re.search(r",(?:convolution|matmul|inner_product),([^,]+),", line))
        and re.search(r"src:u8\b", line)
        and re.search(r"wei:s8\b", line)
    )


_MARK = "-- the run that counts --"

_RUN = f"""
import sys
from pathlib import Path
from lissom.rewrite.evidence.artifact import examples_of, verify_artifact
from lissom.rewrite.measure.integer_layers import runs_of
loaded, _ = verify_artifact(Path(sys.argv[1]))
example = examples_of(loaded, Path(sys.argv[1]))[0]
for ran, times in runs_of(loaded.module, example.args).values():
    print("layer", times, ran)
print("{_MARK}", flush=True)
runs_of(loaded.module, example.args)
"""
