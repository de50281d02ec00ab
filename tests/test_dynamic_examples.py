"""The example of exits runs, and shows what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_easy_digits_leave_early() -> None:
    command = [sys.executable, "examples/exits/early_exit.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    numbers = {
        name: float(found[1])
        for name, pattern in {
            "leave": r"test: (\d+)% leave",
            "accuracy": r"test: accuracy ([0-9.]+)",
            "random": r"as many at random: ([0-9.]+)",
        }.items()
        if (found := re.search(pattern, done.stdout))
    }
    assert numbers["leave"] > 30
    assert numbers["accuracy"] > numbers["random"]
