"""What the tests of training share: a small network, digits to train it on, short programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import lissom
from lissom.demo import model as digits
from lissom.rewrite.journal import Epoch, Note, StageEnd, Trained

DATA = """
  data train = sample("train", all)
  data valid = sample("valid", all)
  data calib = sample("train", 64)
"""
SGD = "optimizer = SGD(lr = 0.1, momentum = 0.9); batch = 100"


def net(seed: int = 0, hidden: int = 40) -> nn.Sequential:
    """Digits [N, 1, 8, 8] to logits [N, 10]."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10)
    return nn.Sequential(*layers).eval()


def run(body: str, model: nn.Module | None = None, **given: Any) -> lissom.Result:
    """Compiles a pipeline of this body with the digits as data."""
    defaults: dict[str, Any] = {"data": digits.data, "metrics": digits.metrics}
    program = f"pipeline p {{ {DATA} {body} }}"
    program = given.pop("rules", "") + program
    model = net() if model is None else model
    return lissom.compile(model, program, inputs=digits.inputs(), **(defaults | given))


def epochs(result: lissom.Result, stage: str = "") -> list[Epoch]:
    found = result.compiled.journal.of(Epoch)
    return [epoch for epoch in found if not stage or epoch.stage == stage]


def trained(result: lissom.Result) -> list[Trained]:
    return result.compiled.journal.of(Trained)


def ends(result: lissom.Result) -> list[StageEnd]:
    return result.compiled.journal.of(StageEnd)


def notes(result: lissom.Result, code: str) -> list[str]:
    return [note.text for note in result.compiled.journal.of(Note) if note.code == code]


def weights(model: nn.Module) -> Iterator[Tensor]:
    return (w.detach() for w in model.parameters() if w.dim() > 1)
