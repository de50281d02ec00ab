"""The digits example keeps its contract: data, training, accuracy and the weights file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from .demo_run import demo_run
from .examples import example, rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def digits() -> ModuleType:
    return example("digits")


@pytest.fixture(scope="session")
def trained(digits: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """As the demo trains it, by this same file."""
    folder, _ = demo_run(tmp_path_factory)
    assert (folder / "model.py").read_bytes() == Path(digits.__file__ or "").read_bytes()
    return digits.load(folder / "weights.safetensors")


def test_digits_splits_have_their_sizes_and_share_no_scan(digits: ModuleType) -> None:
    scans = {split: rows(digits.data(split)) for split in ("train", "valid", "test")}
    assert [len(found) for found in scans.values()] == [1000, 297, 500]
    together = set().union(*scans.values())
    assert len(together) == 1797


def test_digits_splits_hold_every_class(digits: ModuleType) -> None:
    for split in ("train", "valid", "test"):
        labels = torch.cat([y for _, y in digits.data(split)])
        assert labels.dtype == torch.int64
        assert labels.bincount(minlength=10).min() >= 20


def test_digits_data_is_fixed_and_iterable_again(digits: ModuleType) -> None:
    first, again = digits.data("valid"), digits.data("valid")
    assert isinstance(first, list)
    assert rows(first) == rows(again) == rows(example("digits").data("valid"))
    first[0][0].zero_()
    assert rows(digits.data("valid")) == rows(again)


def test_digits_inputs_fit_the_model(digits: ModuleType, trained: nn.Module) -> None:
    (x,) = digits.inputs()
    assert (tuple(x.shape), x.dtype) == ((2, 1, 8, 8), torch.float32)
    assert 0 <= x.min() < x.max() <= 1
    assert not trained.training
    assert trained(x).shape == (2, 10)


def test_digits_model_reads_unseen_scans(digits: ModuleType, trained: nn.Module) -> None:
    name, headline = next(iter(digits.metrics.items()))
    assert name == "accuracy"
    assert headline(trained, digits.data("valid")) >= 0.975
    assert headline(trained, digits.data("test")) >= 0.985


def test_digits_untrained_model_does_not(digits: ModuleType) -> None:
    assert digits.accuracy(digits.DigitNet().eval(), digits.data("valid")) < 0.5


def test_digits_model_has_layers_worth_compressing(trained: nn.Module) -> None:
    wide = [m for m in trained.modules() if isinstance(m, nn.Conv2d) and m.in_channels >= 16]
    flat = [m for m in trained.modules() if isinstance(m, nn.Linear)]
    assert len([m for m in wide if m.kernel_size == (3, 3)]) == 2
    assert max(min(m.in_features, m.out_features) for m in flat) >= 32
    assert sum(p.numel() for p in trained.parameters()) >= 100_000


def test_digits_training_depends_on_its_seed_alone(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 2)
    torch.manual_seed(1)
    first = digits.train(seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        second = digits.train(seed=5)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert not torch.equal(first.head.weight, digits.train(seed=6).head.weight)


def test_digits_weights_survive_the_file(
    digits: ModuleType, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = digits.save(trained, tmp_path / "weights.safetensors")
    assert path.read_bytes() == digits.save(trained, tmp_path / "again").read_bytes()
    monkeypatch.setattr(digits, "WEIGHTS", path)
    (x,) = digits.inputs()
    assert torch.equal(digits.build()(x), trained(x))


def test_digits_build_trains_when_there_is_no_file(
    digits: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 1)
    monkeypatch.setattr(digits, "WEIGHTS", tmp_path / "weights.safetensors")
    (x,) = digits.inputs()
    built = digits.build()(x)
    path = digits.train_and_save(tmp_path / "weights.safetensors")
    assert torch.equal(digits.load(path)(x), built)


@pytest.mark.parametrize("content", ["junk", "other"])
def test_digits_foreign_weights_are_refused(
    digits: ModuleType, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "weights.safetensors"
    if content == "junk":
        path.write_bytes(b"not weights")
    else:
        digits.save(nn.Linear(3, 3), path)
    with pytest.raises(ValueError, match=r"does not hold this network's weights; delete it"):
        digits.load(path)


def test_digits_failed_save_keeps_the_old_file(
    digits: ModuleType, trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = digits.save(trained, tmp_path / "weights.safetensors")
    before = path.read_bytes()

    def full_disk(_weights: object, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(digits, "save_file", full_disk)
    with pytest.raises(OSError, match="disk full"):
        digits.save(trained, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
