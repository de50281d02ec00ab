"""`lissom bench`: a written model is measured in all ways in which it can be run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import lissom
from lissom.__main__ import main
from lissom.demo import model as digits
from lissom.rewrite.runtime.exits import EarlyExit

from .learning import net
from .test_exits import AT_ONE, TUNE, compiled

MODEL = """
import torch
from lissom.demo.model import inputs, metrics
from torch import nn
torch.manual_seed(0)
X = torch.randn(40, 3, 8, 8)

def build():
    return nn.Identity()

def data(split):
    return [(X[:24], None), (X[24:], None)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two artifacts and a model file with data."""
    found = tmp_path_factory.mktemp("bench")
    result = compiled(f"{AT_ONE} {TUNE}")
    assert isinstance(result.model, EarlyExit)
    result.save(found / "exits", check_reload=False)
    plain = lissom.compile(net(), "", inputs=digits.inputs())
    plain.save(found / "plain", check_reload=False)
    (found / "model.py").write_text(MODEL)
    return found


def said(capsys: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["bench", *arguments, "--format", "json", "--seconds", "0"])
    return code, json.loads(capsys.readouterr().out)


def test_a_plain_model_has_one_way(folder: Path, capsys: Any) -> None:
    code, found = said(capsys, str(folder / "plain"))
    assert code == 0
    (row,) = found["rows"]
    assert (row["name"], row["batch"], row["shares"]) == ("model", 1, [])
    assert 0 < row["p50"] <= row["p99"]
    assert row["per_second"] == pytest.approx(1e3 / row["mean"])


def test_a_model_with_exits_is_run_in_all_its_ways(folder: Path, capsys: Any) -> None:
    data = ("--data", str(folder / "model.py"), "--split", "valid")
    code, found = said(capsys, str(folder / "exits"), *data, "--batch", "1", "--batch", "16")
    assert code == 0
    names = [(row["name"], row["batch"]) for row in found["rows"]]
    ways = ("exits", "exits off", "all at exit 1")
    assert names == [(name, size) for size in (1, 16) for name in ways]
    first = found["rows"][0]
    assert sum(first["shares"]) == pytest.approx(1)
    assert all(row["runs"] >= 2 for row in found["rows"])


def test_a_batch_that_nothing_is_large_enough_for(folder: Path, capsys: Any) -> None:
    code, found = said(capsys, str(folder / "exits"), "--batch", "64")
    assert code != 0
    assert [d["code"] for d in found["diagnostics"]] == ["U011"]


def test_the_table_says_who_leaves(folder: Path) -> None:
    from lissom.cli import cli

    found = CliRunner().invoke(cli, ["bench", str(folder / "exits"), "--seconds", "0"])
    assert found.exit_code == 0, found.output
    assert "leave at each exit" in found.output
    assert "all at exit 1" in found.output
