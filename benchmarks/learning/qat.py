"""Weights of four and of three bits on Fashion-MNIST: a residual network of two basic blocks is
trained here, rounded afterwards, and trained on the grid. Beside it, the float network with as many
epochs more. The network is small (28x28 is halved at once), for a seed takes minutes on one thread.
"""

from __future__ import annotations

from functools import cache

import torch
from study import Row, _module, compiled, fashion, measured, study
from torch import Tensor, nn


class SmallResNet(nn.Module):
    """Normalised images [N, 1, 28, 28] to logits [N, 10]: 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        block = _module("fashion_resnet").Block
        self.stem, self.norm = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(block(16, 32, 2), block(32, 64, 2))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(torch.flatten(self.pool(x), 1))


FLOAT = """
  recover float {
    epochs = 6
    optimizer = AdamW(lr = 0.006, weight_decay = 0.01)
    schedule = one_cycle()
    batch = 200
    seed = SEED
  }
"""
TUNED = """
  recover tune {
    epochs = 2
    optimizer = AdamW(lr = 0.001)
    schedule = cosine()
    batch = 200
    seed = SEED
  }
"""
GRID = "stage grid { once grid_weights(bits = BITS, budget = 100%) }"


@cache
def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return compiled(FLOAT.replace("SEED", str(seed)), SmallResNet().eval(), fashion).model


def run(body: str, bits: int = 4) -> object:
    def one(seed: int) -> Row:
        text = body.replace("SEED", str(seed)).replace("BITS", str(bits))
        model = compiled(text, trained(seed), fashion).model if body else trained(seed)
        rows = [row for w in model.parameters() if w.dim() > 1 for row in w.detach()]
        return {**measured(model, fashion), "values": max(len(row.unique()) for row in rows)}

    return one


ARMS = {
    "float": run(""),
    "float, more epochs": run(TUNED),
    "rounded, 4 bits": run(GRID),
    "trained, 4 bits": run(f"{GRID}\n{TUNED}"),
    "rounded, 3 bits": run(GRID, 3),
    "trained, 3 bits": run(f"{GRID}\n{TUNED}", 3),
}

if __name__ == "__main__":
    study("qat", ARMS, __doc__)
