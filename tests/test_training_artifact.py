"""A model that was trained says in its certificate how, and can be made again from that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODEL = """
import torch
from torch import nn
from lissom.demo.model import data, inputs, metrics

def build():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10)
    return nn.Sequential(*layers).eval()
"""
PROGRAM = """
pipeline learn(share: frac = 50%, seed: int = 3) {
  data train = sample("train", all)
  data valid = sample("valid", all)
  data calib = sample("train", 64)
  stage prune { once prune_weights(ratio = share, budget = 100%) }
  recover tune {
    epochs = 3
    batch = 100
    optimizer = SGD(lr = 0.1, momentum = 0.9)
    seed = seed
  }
}
"""


def lissom(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lissom", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def certificate(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a program, and what `apply` made of them."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "model.py").write_text(MODEL)
    (folder / "learn.lissom").write_text(PROGRAM)
    done = lissom(folder, "apply", "model.py", "learn.lissom", "-o", "out", "--set", "share=70%")
    assert done.returncode == 0, done.stderr
    assert "tune" in done.stdout
    assert not (folder / "out.checkpoints").exists()
    return folder


def test_the_certificate_says_how_it_was_trained(made: Path) -> None:
    found = certificate(made / "out")
    assert found["program"]["settings"] == {"share": "70%", "seed": "3"}
    (training,) = found["trainings"]
    assert training["settings"]["seed"] == 3
    assert training["settings"]["optimizer"] == "SGD(lr = 0.1, momentum = 0.9)"
    assert training["kept"]
    assert [epoch["number"] for epoch in training["history"]] == [0, 1, 2, 3]
    assert all("accuracy" in epoch["metrics"] for epoch in training["history"])
    assert {name: len(digest) for name, digest in training["data"].items()} == {
        "train": 64,
        "valid": 64,
    }
    assert set(training["versions"]) == {"torch", "accelerate"}
    assert training["verdicts"][0]["holds"]
    verified = lissom(made, "verify", "out")
    assert verified.returncode == 0, verified.stdout


def test_it_is_made_again_from_what_the_certificate_says(made: Path) -> None:
    first = certificate(made / "out")
    shutil.copy(made / "out" / "program.lissom", made / "again.lissom")
    given = first["program"]["settings"]
    settings = [f"--set={name}={value}" for name, value in given.items()]
    done = lissom(made, "apply", "model.py", "again.lissom", "-o", "again", *settings)
    assert done.returncode == 0, done.stderr
    again = certificate(made / "again")
    assert again["model"] == first["model"]
    assert again["trainings"] == first["trainings"]


def test_a_plan_trains_once(made: Path) -> None:
    planned = lissom(made, "plan", "model.py", "learn.lissom", "-o", "plan.json")
    assert planned.returncode == 0, planned.stderr
    assert len(list((made / "plan.json.checkpoints").iterdir())) == 1
    done = lissom(made, "apply", "model.py", "--plan", "plan.json", "-o", "planned")
    assert done.returncode == 0, done.stderr
    assert not (made / "plan.json.checkpoints").exists()
    assert len(certificate(made / "planned")["trainings"][0]["history"]) == 4


FOLLOWS = """
pipeline follow {
  data train = sample("train", all)
  data valid = sample("valid", all)
  recover tune {
    epochs = 2
    teacher = recorded("teacher.safetensors")
    loss = kl(temperature = 2) + task()
  }
}
"""


def test_what_a_file_taught_is_made_again_with_that_file_and_no_other(made: Path) -> None:
    recorded = lissom(made, "record", "model.py", "--split", "train", "-o", "teacher.safetensors")
    assert recorded.returncode == 0, recorded.stderr
    (made / "follow.lissom").write_text(FOLLOWS)
    done = lissom(made, "apply", "model.py", "follow.lissom", "-o", "followed")
    assert done.returncode == 0, done.stderr
    first = certificate(made / "followed")
    shutil.copy(made / "followed" / "program.lissom", made / "followed_again.lissom")
    done = lissom(made, "apply", "model.py", "followed_again.lissom", "-o", "followed_again")
    assert done.returncode == 0, done.stderr
    again = certificate(made / "followed_again")
    assert again["model"] == first["model"]
    assert again["trainings"] == first["trainings"]
    other = MODEL.replace("manual_seed(0)", "manual_seed(1)")
    (made / "other.py").write_text(other)
    recorded = lissom(made, "record", "other.py", "--split", "train", "-o", "teacher.safetensors")
    assert recorded.returncode == 0, recorded.stderr
    done = lissom(made, "apply", "model.py", "followed_again.lissom", "-o", "otherwise")
    assert done.returncode == 0, done.stderr
    otherwise = certificate(made / "otherwise")
    assert otherwise["trainings"][0]["teacher"] != first["trainings"][0]["teacher"]
