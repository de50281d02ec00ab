"""Model files with dimensions for the tests of the command line, and a program that cuts them."""

from __future__ import annotations

from pathlib import Path

RESIDUAL = """\
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.a = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.b = nn.Conv2d(inner, width, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.norm(self.a(x)))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = Block(8, 12), Block(8, 12)
        self.two.b.weight = self.one.b.weight
        self.wide = nn.Linear(8, 16)
        self.sums = nn.Linear(16, 6)
        self.last = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.two(self.one(self.stem(x))).mean((2, 3))
        x = torch.cumsum(self.sums(torch.relu(self.wide(x))), 1)
        return self.head(torch.cumsum(self.last(x), 1))

def build():
    torch.manual_seed(0)
    net = Net()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-1, 1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return net.eval()

def inputs():
    torch.manual_seed(1)
    return (torch.rand(2, 3, 6, 6),)

def data(split):
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}")
    torch.manual_seed(2)
    return [(torch.rand(4, 3, 6, 6), torch.zeros(4, dtype=torch.long)) for _ in range(3)]
"""
"""Two residual blocks whose last weights are one; behind them sums over features, twice."""

THIN = """\
pipeline thin(ratio: frac = 50%) {
  data calib = sample("train", 8)
  budget drift(outputs) <= 90%
  stage cut {
    once prune_l1(ratio = ratio)
  }
}
"""


def write_case(folder: Path, program: str = THIN) -> tuple[str, str]:
    """Writes model and program; their names for the command line."""
    model, rules = folder / "residual.py", folder / "thin.lissom"
    model.write_text(RESIDUAL)
    rules.write_text(program)
    return f"{model}:build", str(rules)
