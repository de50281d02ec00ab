"""Labelled images in the IDX files of MNIST and of Fashion-MNIST, which differ in content alone.

Splits: "train" is the first 55,000 training images, "valid" the last 5,000, "test" the 10,000 test
images.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
Pair = tuple[np.ndarray, np.ndarray]

BATCH = 500
# Name of the IDX files and the slice of them that the split takes.
SPLITS = {
    "train": ("train", slice(0, 55_000)),
    "valid": ("train", slice(55_000, 60_000)),
    "test": ("t10k", slice(0, 10_000)),
}


def _idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file, packed if it is a `.gz`, behind its header of `header` bytes."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header)


def read_pair(images: Path, labels: Path) -> Pair:
    """Images uint8 `[n, 28, 28]` and labels uint8 `[n]` of one pair of files."""
    return _idx(images, 16).reshape(-1, 28, 28), _idx(labels, 8)


def batches_of(
    split: str, pair: Callable[[str], Pair], mean: float, deviation: float
) -> list[Batch]:
    """Batches of 500 `(images float32 [n, 1, 28, 28] normalised, labels int64 [n])`, in file order.

    `pair("train")` and `pair("t10k")` read the files. Raises ValueError for a split other than
    "train", "valid" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    name, rows = SPLITS[split]
    pixels, labels = (array[rows] for array in pair(name))
    x = torch.from_numpy(pixels.astype(np.float32) / 255).sub_(mean).div_(deviation).unsqueeze(1)
    y = torch.from_numpy(labels.astype(np.int64))
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


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
