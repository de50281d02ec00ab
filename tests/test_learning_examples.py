"""The examples of learning run, and show what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def said(name: str) -> str:
    command = [sys.executable, f"examples/learning/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_rounds_under_a_budget() -> None:
    text = said("prune_recover")
    assert "tune 1: epoch" in text
    assert "pruned: 0.0 % zeros" not in text


@pytest.mark.slow
def test_a_ticket_beside_its_control() -> None:
    text = said("lottery_ticket")
    assert "tune redrawn" in text
    assert "ticket: accuracy" in text
    assert "redrawn: accuracy" in text


@pytest.mark.slow
def test_three_teachers_for_one_student() -> None:
    text = said("ensemble_teacher")
    found = dict(re.findall(r"student of (.*): accuracy [0-9.]+, ([0-9.]+) from", text))
    assert len(found) == 4
    assert max(found, key=lambda name: float(found[name])) == "labels"


@pytest.mark.slow
def test_a_teacher_in_a_file_teaches_what_its_model_teaches() -> None:
    text = said("teacher_from_file")
    assert "outputs [1000, 10] of 1,000 samples of train" in text
    assert text.endswith("the model itself teaches the same weights\n")


@pytest.mark.slow
def test_separable_blocks_and_a_teacher() -> None:
    text = said("recover_separable")
    assert "tune anew: epoch" in text
    assert "dense: 4,889,088 MACs, accuracy" in text
    assert "separable: 750,080 MACs, accuracy" in text
