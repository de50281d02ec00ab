"""O-Net, the last of the three networks of the face detector MTCNN (Zhang et al. 2016,
arXiv:1604.02878): four convolutions with PReLU and a linear layer with three heads, 389,040
parameters.

Weights: package `facenet-pytorch` 2.6.0 (PyPI, MIT). The network is written out here, so the
package is never imported.
Data: 100 faces and 100 pieces of background of 25 x 25 pixels, from Labeled Faces in the Wild, that
package `scikit-image` 0.26.0 carries (PyPI, BSD-3-Clause; only the one file is read). Get both with
`python examples/fetch.py onet`, or:

    pip install --no-deps facenet-pytorch==2.6.0 scikit-image==0.26.0

Each image is seen four times, each time in other noise, for without noise every face is told from
every piece of background. Splits share no image: "train" is 20 faces and 20 others (for
calibration), "valid" and "test" 40 and 40 each; who the persons are is not recorded.
Metric: `auc`, the chance that a face gets a higher score than a piece of background does.
Baseline (torch 2.13, CPU): auc .971 on valid, .983 on test, .966 on train; 1.0 without the noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# What the examples share lies beside their folders.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from published import Files

Batch = tuple[Tensor, Tensor]

BATCH = 40
FACES, SIDE = 100, 48
VIEWS, NOISE = 4, 0.12
# The rows that the split takes of the faces and again of the others, and the seed of its noise.
SPLITS = {
    "train": (slice(0, 20), 1),
    "valid": (slice(20, 60), 2),
    "test": (slice(60, 100), 3),
}
SHA256 = {"onet.pt": "165bfbe42940416c", "lfw_subset.npy": "9560ec2f5edfac01"}
FILES = Files(
    "onet", SHA256, ("pip install --no-deps facenet-pytorch==2.6.0 scikit-image==0.26.0",)
)


class ONet(nn.Module):
    """Reads images `[batch, 3, 48, 48]` in -1..1 and gives the corrections of the box
    `[batch, 4]`, five landmarks `[batch, 10]` and the chances of background and face
    `[batch, 2]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.softmax6_1 = nn.Linear(256, 2), nn.Softmax(dim=1)
        self.dense6_2, self.dense6_3 = nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        # The weights were trained where the channels come last, and width before height.
        x = x.permute(0, 3, 2, 1).contiguous()
        x = self.prelu5(self.dense5(x.view(x.shape[0], -1)))
        return self.dense6_2(x), self.dense6_3(x), self.softmax6_1(self.dense6_1(x))


def build() -> nn.Module:
    """The published network in eval mode; FileNotFoundError says how to get the weights."""
    path = FILES.checked(FILES.package("facenet_pytorch") / "data" / "onet.pt")
    model = ONet()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return model.eval()


def _images() -> Tensor:
    """100 faces, then 100 pieces of background, grey, 0..1, float32 `[200, 25, 25]`."""
    path = FILES.checked(FILES.package("skimage") / "data" / "lfw_subset.npy")
    return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))


def _enlarged(grey: np.ndarray) -> Tensor:
    """Grey images in 0..1 as the network takes them: `[n, 3, 48, 48]` in -1..1."""
    x = torch.from_numpy(grey.astype(np.float32)).unsqueeze(1)
    x = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return (x * 255 - 127.5).div(128).expand(-1, 3, -1, -1).contiguous()


def data(split: str) -> list[Batch]:
    """Batches of 40 `(images float32 [n, 3, 48, 48], face or not int64 [n])`, each half faces.

    Raises ValueError for a split other than "train", "valid" or "test", FileNotFoundError saying
    how to get the file.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    rows, seed = SPLITS[split]
    # RandomState is numpy's frozen generator: its numbers never change between versions.
    noise = np.random.RandomState(seed)
    # Faces and others in turn, so that every batch holds as many of both.
    images = _images().unflatten(0, (2, FACES))[:, rows].transpose(0, 1).flatten(0, 1)
    grey = images.numpy().repeat(VIEWS, axis=0)
    x = _enlarged((grey + NOISE * noise.standard_normal(grey.shape)).clip(0, 1))
    y = torch.tensor([1, 0]).repeat_interleave(VIEWS).repeat(len(x) // (2 * VIEWS))
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def inputs() -> tuple[Tensor, ...]:
    """A face and a piece of background, `[2, 3, 48, 48]`, from the valid split."""
    return (data("valid")[0][0][: 2 * VIEWS : VIEWS].clone(),)


def auc(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Area under the ROC curve of the face score, half a win for a tie; raises ValueError without
    images of both kinds.
    """
    scores: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.no_grad():
        for x, y in batches:
            score = model(x)[2][:, 1].double()
            for kind in (0, 1):
                scores[kind].append(score[y == kind])
    others, faces = (torch.cat([*found, torch.empty(0)]) for found in scores)
    if not len(others) or not len(faces):
        raise ValueError("the area under the curve needs faces and others")
    margin = faces[:, None] - others[None, :]
    return float(((margin > 0).double() + (margin == 0).double() / 2).mean())


metrics: dict[str, Callable[[nn.Module, Iterable[Batch]], float]] = {"auc": auc}
