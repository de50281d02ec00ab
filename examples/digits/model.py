"""A small convolutional digit reader, trained here in seconds.

Model: three 3x3 convolutions with BatchNorm and two linear layers, 159,850 parameters.
Data: the 1,797 scanned 8x8 digits that scikit-learn carries (UCI "Optical Recognition of
Handwritten Digits", CC BY 4.0; package BSD-3-Clause), split once and for all 1,000 / 297 / 500.
Weights: trained from scratch by `build()`, or read from `weights.safetensors` beside this file.
Baseline (torch 2.13, CPU): accuracy .9865 on valid and .996 on test with seed 0; over seeds 0, 1
and 2 .9865 on valid each time and .992 to .996 on test. Training takes 5 to 8 s on one thread.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]

WEIGHTS = Path(__file__).resolve().parent / "weights.safetensors"
SPLITS = {"train": slice(0, 1000), "valid": slice(1000, 1297), "test": slice(1297, 1797)}
SPLIT_SEED = 20
BATCH = 100
EPOCHS = 24
PEAK_RATE = 4e-3


class DigitNet(nn.Module):
    """Reads images `[batch, 1, 8, 8]` in 0..1 and gives logits `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(128)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.hidden = nn.Linear(128 * 2 * 2, 128)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = self.pool(self.relu(self.bn3(self.conv3(x))))
        x = self.relu(self.hidden(torch.flatten(x, 1)))
        return self.head(self.dropout(x))


@cache
def _scans() -> Batch:
    """All scans `[1797, 1, 8, 8]` in 0..1 and their labels, in one fixed shuffled order."""
    images, labels = load_digits(return_X_y=True)
    # The scans come grouped by writer, so an unshuffled cut would test on other writers only.
    # RandomState is numpy's frozen generator: this order never changes between versions.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    x = torch.from_numpy(images[order].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    return x, torch.from_numpy(labels[order].astype(np.int64))


def data(split: str) -> list[Batch]:
    """Batches of up to 100 `(images float32 [n, 1, 8, 8], labels int64 [n])`, always in one order.

    Raises ValueError for a split other than "train", "valid" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    x, y = (tensor[SPLITS[split]].clone() for tensor in _scans())
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def inputs() -> tuple[Tensor, ...]:
    """Two training scans `[2, 1, 8, 8]`."""
    return (data("train")[0][0][:2].clone(),)


def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Fraction of the images whose largest logit is the label's; raises ValueError on no images."""
    right, count = 0, 0
    with torch.no_grad():
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            count += len(y)
    if count == 0:
        raise ValueError("accuracy of no images is undefined")
    return right / count


metrics: dict[str, Callable[[nn.Module, Iterable[Batch]], float]] = {"accuracy": accuracy}


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Run on one thread from a fixed seed; then restore the caller's generator and threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Sums are ordered by thread, so the count decides the last bits.
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _shifted(x: Tensor) -> Tensor:
    """The batch moved by up to one pixel each way, zeros moving in."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    return functional.pad(x, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    x, y = (tensor[SPLITS["train"]] for tensor in _scans())
    for rows in torch.randperm(len(y)).split(BATCH):
        loss = functional.cross_entropy(model(_shifted(x[rows])), y[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def train(seed: int = 0) -> nn.Module:
    """Train on the train split alone; the same seed gives the same weights. Returns eval mode."""
    with _reproducible(seed):
        model = DigitNet().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
        steps = EPOCHS * len(data("train"))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
        for _ in range(EPOCHS):
            _epoch(model, optimizer, schedule)
    return model.eval()


def save(model: nn.Module, path: Path = WEIGHTS) -> Path:
    """Write the weights so that a reader sees the old file or the whole new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(model.state_dict(), name)
        os.chmod(name, 0o644)  # The temporary file is private to its owner; the result is not.
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def train_and_save(path: Path = WEIGHTS, seed: int = 0) -> Path:
    """Train and write the weights to `path`, which `build()` reads when it is the default one."""
    return save(train(seed), path)


def load(path: Path = WEIGHTS) -> nn.Module:
    """The network with the weights of `path`; raises ValueError if they are not this network's."""
    model = DigitNet()
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} does not hold this network's weights; delete it: {error}"
        ) from error
    return model.eval()


def build() -> nn.Module:
    """The trained network in eval mode, read from `weights.safetensors` or else trained."""
    return load(WEIGHTS) if WEIGHTS.is_file() else train()
