"""Depthwise separable blocks in the place of convolutions, recovered by distillation: a small
convolutional network on Fashion-MNIST with 8 times fewer multiplications in what is rewritten
(Howard et al. 2017, arXiv:1704.04861: 8.5 times fewer cost 1.1 points on ImageNet).

Beside it: the same without a teacher; the same network with weights that are drawn anew, trained as
long, with and without the teacher. All of them learn from 20,000 of the images. Norms are folded
before time is measured: the median of 200 runs, one thread.
"""

from __future__ import annotations

import statistics
import time
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from study import Row, compiled, fashion, measured, study
from torch import Tensor, nn

WIDTHS = (1, 32, 96, 128)
DENSE = """
  recover dense { epochs = 4; batch = 125; SETTINGS }
  stage clean { fixpoint { fold_bn } }
"""
BLOCKS = """
  stage blocks { once separable_block }
  DRAWN
  recover tune { epochs = 4; batch = 125; SETTINGS; LOSS }
  stage clean { fixpoint { fold_bn } }
"""
SETTINGS = "optimizer = AdamW(lr = 0.003, weight_decay = 0.01); schedule = cosine(); seed = SEED"
TEACHER = "teacher = original; loss = kl(temperature = 4) + task()"


def network(seed: int) -> nn.Sequential:
    """Three 3x3 convolutions with stride 2 and norms: 158,000 parameters, 3.2 million MACs."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10)]
    return nn.Sequential(*layers).eval()


@cache
def clothes(split: str) -> list[tuple[Tensor, Tensor]]:
    """Fashion-MNIST; of the 55,000 samples to learn from, the first 20,000."""
    return fashion(split)[:40]


@cache
def dense(seed: int) -> Any:
    """The trained network that everything begins from, before norms are folded, and after."""
    text = DENSE.replace("SETTINGS", SETTINGS).replace("SEED", str(seed))
    trained, _, stage = text.partition("  stage")
    model = compiled(trained, network(seed), clothes).model.eval()
    return model, compiled("  stage" + stage, model, clothes)


def row(result: Any) -> Row:
    """Errors, what is multiplied in the rewritten places, and in all, and milliseconds."""
    applied = [event for event in result.applied if event.rule == "separable_block"]
    was, now = (sum(getattr(e, side).macs for e in applied) for side in ("before", "after"))
    costs = {"macs": result.after.macs // 2, "params": result.after.params}  # of two images
    fewer = {"fewer": was / now if applied else 1.0}
    times = {f"ms_{n}": milliseconds(result.model, torch.randn(n, 1, 28, 28)) for n in (1, 100)}
    return {**measured(result.model, fashion), **costs, **fewer, **times}


def milliseconds(model: nn.Module, x: Tensor) -> float:
    found = []
    with torch.inference_mode():
        for _ in range(220):
            begun = time.perf_counter()
            model(x)
            found.append(1000 * (time.perf_counter() - begun))
    return statistics.median(found[20:])


def arm(loss: str = "", drawn: str = "") -> Any:
    def run(seed: int) -> Row:
        text = BLOCKS.replace("SETTINGS", SETTINGS).replace("LOSS", loss).replace("DRAWN", drawn)
        return row(compiled(text.replace("SEED", str(seed)), dense(seed)[0], clothes))

    return run


DRAWN = "rewind drawn(seed = SEED)"
ARMS = {
    "dense": lambda seed: row(dense(seed)[1]),
    "distilled": arm(TEACHER),
    "without a teacher": arm(),
    "drawn anew": arm(drawn=DRAWN),
    "drawn anew, distilled": arm(TEACHER, DRAWN),
}

if __name__ == "__main__":
    study("separable", ARMS, __doc__)
