"""A small residual network that tells clothes apart, trained from nothing on Fashion-MNIST.

Model: a 3x3 stem and three stages of two basic blocks, 16, 32 and 64 channels, each stage halving
the image; global average and a linear layer (He et al. 2016, arXiv:1512.03385). 175,258 parameters.
Data: Debian package `dataset-fashion-mnist` 0.0~git20200523.55506a9-1 (MIT, the images included).
Get it with `python examples/fetch.py fashion_resnet`, or, where apt is at hand:

    apt-get download dataset-fashion-mnist
    dpkg-deb -x dataset-fashion-mnist_*.deb examples/.data/debian

Weights: `python examples/fashion_resnet/train.py` makes them. Data and weights are looked for in
`examples/.data`, or in the folder that LISSOM_DATA names.
Splits: "train" is the first 55,000 training images, "valid" the last 5,000, "test" the 10,000 test
images. Nothing was chosen on "test".
Baseline (torch 2.13, CPU), seeds 0, 1 and 2: accuracy .9350, .9352 and .9370 on valid, .9309, .9314
and .9299 on test. Training takes about five minutes of processor time on one thread.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# What the examples share lies beside their folders.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from idx_images import Batch, Pair, accuracy, batches_of, read_pair
from published import Files, folder

MEAN, DEVIATION = 0.2860, 0.3530
WIDTHS = (16, 32, 64)
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf8",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f3",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84d",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44",
}
PLACE = "usr/share/datasets/fashion-mnist"
FILES = Files(
    "fashion_resnet",
    SHA256,
    (
        "apt-get download dataset-fashion-mnist",
        "dpkg-deb -x dataset-fashion-mnist_*.deb examples/.data/debian",
    ),
)
TRAIN = """{missing} was not found. Train the network (some minutes) with
    python examples/fashion_resnet/train.py{seed}
LISSOM_DATA may name another folder than examples/.data."""


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is 1x1 where the block halves the image."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionResNet(nn.Module):
    """Reads normalised images `[batch, 1, 28, 28]` and gives logits `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        widths = zip((WIDTHS[0], *WIDTHS[:-1]), WIDTHS, strict=True)
        self.stages = nn.Sequential(
            *(nn.Sequential(Block(i, o, 2), Block(o, o, 1)) for i, o in widths)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.norm(self.stem(x))))
        return self.head(torch.flatten(self.pool(x), 1))


# -- weights ---------------------------------------------------------------------------------------


def weights(seed: int = 0) -> Path:
    """Where the weights that were trained from this seed lie."""
    name = "fashion_resnet" if seed == 0 else f"fashion_resnet-{seed}"
    return folder() / "trained" / f"{name}.safetensors"


def save(model: nn.Module, path: Path) -> Path:
    """Write the weights so that a reader sees the old file or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(held, name)
        os.chmod(name, 0o644)  # The temporary file is private to its owner; the result is not.
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def load(path: Path) -> nn.Module:
    """The network with the weights of `path`; raises ValueError if they are not this network's."""
    model = FashionResNet()
    try:
        model.load_state_dict(load_file(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold this network's weights: {error}") from error
    return model.eval()


def build(seed: int = 0) -> nn.Module:
    """The trained network in eval mode; FileNotFoundError says how to train it."""
    path = weights(seed)
    if not path.is_file():
        option = f" --seed {seed}" if seed else ""
        raise FileNotFoundError(TRAIN.format(missing=path, seed=option))
    return load(path)


# -- data ------------------------------------------------------------------------------------------


def _file(name: str) -> Path:
    """The file, fetched or else installed, once its bytes are known to be the pinned ones."""
    places = folder() / "debian" / PLACE / name, Path("/") / PLACE / name
    return FILES.checked(next((path for path in places if path.is_file()), places[0]))


@cache
def _images(name: str) -> Pair:
    """Images uint8 `[n, 28, 28]` and labels uint8 `[n]` of one pair of files."""
    return read_pair(_file(f"{name}-images-idx3-ubyte.gz"), _file(f"{name}-labels-idx1-ubyte.gz"))


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
