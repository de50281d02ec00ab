"""A small model file and programs for the tests of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lissom.__main__ import main

MODEL = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.head(self.drop(x.mean((2, 3))))

def build():
    torch.manual_seed(0)
    net = Net()
    net.bn.running_mean.uniform_(-1, 1)
    net.bn.running_var.uniform_(0.5, 2)
    # Nearly of rank one, so that a low rank keeps the outputs.
    net.head.weight.data = torch.outer(torch.ones(4), torch.rand(8)) + 1e-3 * torch.rand(4, 8)
    return net.eval()

def inputs():
    torch.manual_seed(1)
    return (torch.rand(2, 3, 6, 6),)

def data(split):
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}")
    torch.manual_seed(2)
    return [(torch.rand(4, 3, 6, 6), torch.zeros(4, dtype=torch.long)) for _ in range(3)]

def share(model, batches):
    hits = [float((model(x).argmax(1) == y).float().mean()) for x, y in batches]
    return sum(hits) / len(hits)

metrics = {"share": share}
"""

PROGRAM = """\
pipeline shrink(energy: frac = 99%) {
  data calib = sample("train", 8)
  stage clean {
    fixpoint { fold_bn; drop_dropout }
  }
  stage low {
    once low_rank_linear(energy = energy, least = 4)
  }
}
"""

SILENT = """\
pipeline quiet {
  stage only {
    once drop_double_neg
  }
}
"""

FAILING = """\
pipeline strict {
  stage clean {
    once fold_bn
  }
  verify { params(model) <= 10 }
}
"""


def write_case(folder: Path, program: str = PROGRAM) -> tuple[str, str]:
    """Writes model and program; their names for the command line."""
    model, rules = folder / "net.py", folder / "shrink.lissom"
    model.write_text(MODEL)
    rules.write_text(program)
    return f"{model}:build", str(rules)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code of a command, and what it prints with `--format json`."""
    capsys.readouterr()
    code = main([*arguments, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)
