"""Python in processes that have seen nothing of a test, without the seconds that importing takes.

One server for each test process is started as any program is, imports torch and lissom, and makes a
copy of itself for each call. A copy has no module, no setting and no memory of the test that asked.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def run(
    command: Sequence[str],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    **_: Any,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` gives, as text, for `[sys.executable, "-c" or "-m" or a file, ...]`."""
    assert command[0] == sys.executable, command
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]
        asked = {
            "words": [str(word) for word in command[1:]],
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
            "said": [str(path) for path in said],
        }
        code = _ask(json.dumps(asked))
        done = subprocess.CompletedProcess(command, code, *(path.read_text() for path in said))
    if check:
        done.check_returncode()
    return done


def _ask(line: str) -> int:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{line}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


@cache
def _server() -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("fresh_server.py"))]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env, cwd=ROOT)
    atexit.register(server.kill)
    return server
