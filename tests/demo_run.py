"""One run of the demo, as a newcomer types it, for all tests of a session: it trains."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from . import fresh

ROOT = Path(__file__).parent.parent


def demo_run(factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that it left, which is not to be written to, and what it printed. Test processes
    share it: the first one that asks runs it, and others wait.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home, said = shared / "demo_run", shared / "demo_run.txt"
    with open(shared / "demo_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            home.mkdir()
            said.write_text(_printed(home), "utf-8")
    return home / "demo", said.read_text("utf-8")


def _printed(home: Path) -> str:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    done = fresh.run([sys.executable, "-m", "lissom", "demo"], cwd=home, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
