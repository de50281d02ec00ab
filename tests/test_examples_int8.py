"""Programs that take the example models to int8: short, without remarks, integer throughout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lissom
from lissom.__main__ import main
from lissom.rewrite.journal import Refused
from lissom.rewrite.runtime.layers import Int8Layer

from .examples import EXAMPLES

PROGRAMS = sorted((EXAMPLES / "int8").glob("*.lissom"))


class Reader(nn.Module):
    """The kinds of layers of the digit reader."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.pool, self.hidden, self.out = nn.MaxPool2d(2), nn.Linear(24, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.a(x)))
        x = self.pool(torch.relu(self.b(x)))
        return self.out(torch.relu(self.hidden(torch.flatten(x, 1))))


class Mobile(nn.Module):
    """An inverted bottleneck with its shortcut, padded apart as EfficientNet-Lite0 does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 12, 1, bias=False)
        self.deep = nn.Conv2d(12, 12, 3, groups=12, bias=False)
        self.thin, self.head = nn.Conv2d(12, 6, 1, bias=False), nn.Linear(6, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 12, 12, 6))
        self.act, self.drop = nn.ReLU6(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (0, 1, 0, 1))
        x = self.act(self.norms[0](self.stem(padded)))
        y = self.act(self.norms[1](self.wide(x)))
        y = self.act(self.norms[2](self.deep(functional.pad(y, (1, 1, 1, 1)))))
        x = self.norms[3](self.thin(y)) + x
        mean = functional.adaptive_avg_pool2d(x, 1)
        return self.head(self.drop(torch.flatten(mean, 1)))


class Encoder(nn.Module):
    """Attention of two heads and two linear layers, each with its layer norm, on a table."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(5, 8)
        self.query, self.key, self.value, self.mix = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(torch.arange(5).expand(len(x), 5))
        query, key, value = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (query @ key.transpose(-1, -2)).softmax(-1)
        x = self.first(x + self.mix((scores @ value).transpose(1, 2).flatten(2)))
        return self.second(x + self.down(functional.gelu(self.up(x))))


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is one of its own where the block halves."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms, self.act = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2)), nn.ReLU()
        short = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.short = nn.Sequential(*short) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.two(self.act(self.norms[0](self.one(x)))))
        return self.act(y + self.short(x))


def residual() -> nn.Module:
    """A stem, a block that halves and one that does not, an average and a linear layer."""
    stem = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*stem, Block(6, 8, 2), Block(8, 8, 1), *head)


STAND_INS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "efficientnet_lite0": (Mobile, (3, 8, 8), 5, 3),
    "fashion_resnet": (residual, (1, 8, 8), 7, 6),
    "minilm": (Encoder, (5, 8), 6, 0),
    "mnist_cnn": (Reader, (1, 8, 8), 4, 3),
}
"""Of each program a network, the shape of one sample, how many layers become integer, and how many
of those give codes.
"""


def stand_in(name: str) -> tuple[nn.Module, Tensor, list[Any]]:
    """The network in eval mode, an input, and batches to calibrate on."""
    make, shape, _, _ = STAND_INS[name]
    torch.manual_seed(0)
    model, data = make().eval(), [torch.randn(16, *shape) for _ in range(3)]
    return model, torch.randn(4, *shape), [(x, torch.zeros(16)) for x in data]


def test_each_program_has_a_network() -> None:
    assert [path.stem for path in PROGRAMS] == sorted(STAND_INS)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_are_short_and_without_remarks(path: Path) -> None:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 15
    assert main(["check", "--strict", str(path)]) == 0
    assert main(["fmt", "--check", str(path)]) == 0


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_make_every_layer_integer(path: Path) -> None:
    model, x, data = stand_in(path.stem)
    result = lissom.compile(model, path, inputs=(x,), data=data)
    left = [e for e in result.journal.of(Refused) if e.code == "B001"]
    layers = [module for module in result.model.modules() if isinstance(module, Int8Layer)]
    _, _, count, storing = STAND_INS[path.stem]
    assert (left, len(layers)) == ([], count)
    assert sum(layer.output_scale is not None for layer in layers) == storing
    # No rule of the program is there for nothing. W706 is of processors without VNNI.
    assert {note.code for note in result.notes} <= {"W706"}
    with torch.inference_mode():
        wanted, found = model(x), result.model(x)
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.05
