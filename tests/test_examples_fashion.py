"""The Fashion-MNIST example: its package, its splits, its weights and its training."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from .examples import EXAMPLES, example, fetch_script, load, rows

pytestmark = pytest.mark.usefixtures("one_thread")

FOLDER = EXAMPLES / "fashion_resnet"
PART = "usr/share/datasets/fashion-mnist/"


@pytest.fixture
def fashion() -> ModuleType:
    return example("fashion_resnet")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with nothing in it."""
    monkeypatch.setenv("LISSOM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# -- the package -----------------------------------------------------------------------------------


@pytest.fixture
def fetch(away: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return fetch_script(monkeypatch)


def deb(path: Path, names: list[str]) -> Path:
    """A Debian package of files that hold their names; what comes before them is odd in size."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": packed.getvalue()}
    path.write_bytes(b"!<arch>\n" + b"".join(ar_member(*part) for part in parts.items()))
    return path


def ar_member(name: str, content: bytes) -> bytes:
    head = f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n"
    return head.encode() + content + b"\n" * (len(content) % 2)


def pinned(fetch: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The example's package, with the source file's digest; its download is a copy of that file."""
    (package,) = fetch.EXAMPLES["fashion_resnet"]
    code = "import shutil, sys; shutil.copy(sys.argv[1], '.')"
    monkeypatch.setattr(
        fetch.Package, "command", lambda *_: [sys.executable, "-c", code, str(source)]
    )
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return dataclasses.replace(package, sha256=digest)


def test_fetch_unpacks_the_wanted_part_of_a_debian_package(
    fetch: ModuleType, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = deb(away.parent / "d.deb", [f"./{PART}a.gz", "./usr/share/doc/copyright", "./etc/x"])
    fetch.fetch(pinned(fetch, source, monkeypatch))
    files = [path for path in (away / "debian").rglob("*") if path.is_file()]
    assert files == [away / "debian" / PART / "a.gz"]
    assert files[0].read_text() == f"./{PART}a.gz"


def test_fetch_refuses_another_debian_package_than_the_pinned(
    fetch: ModuleType, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = deb(away.parent / "d.deb", [f"./{PART}a.gz"])
    package = pinned(fetch, source, monkeypatch)
    deb(source, [f"./{PART}b.gz"])
    with pytest.raises(fetch.FetchError, match=r"dataset-fashion-mnist: sha256 is \w+, pinned is"):
        fetch.fetch(package)
    assert not (away / "debian").exists()


def test_fetch_refuses_a_file_outside(
    fetch: ModuleType, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = "../" * (PART.count("/") + 2)
    source = deb(away.parent / "d.deb", [f"./{PART}{up}escaped"])
    with pytest.raises(tarfile.OutsideDestinationError):
        fetch.fetch(pinned(fetch, source, monkeypatch))
    assert not list(away.parent.glob("**/escaped"))


@pytest.mark.parametrize("damage", [lambda raw: raw[8:], lambda raw: raw[:90], lambda raw: b""])
def test_fetch_says_that_a_file_is_no_debian_package(
    fetch: ModuleType,
    away: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    source = deb(away.parent / "d.deb", [f"./{PART}a.gz"])
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(fetch.FetchError, match=r"d\.deb is no Debian package with files"):
        fetch.fetch(pinned(fetch, source, monkeypatch))


def test_apt_gets_the_pinned_version(fetch: ModuleType, away: Path) -> None:
    (package,) = fetch.EXAMPLES["fashion_resnet"]
    command = package.command(away)
    assert command[:2] == ["apt-get", "download"]
    assert command[-1] == f"dataset-fashion-mnist={package.version}"


# -- the model file --------------------------------------------------------------------------------


def test_unknown_split_names_the_known_ones(fashion: ModuleType) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; known splits: train, valid, test"):
        fashion.data("dev")


def test_accuracy_of_no_batches_is_an_error(fashion: ModuleType) -> None:
    with pytest.raises(ValueError, match="no images"):
        fashion.accuracy(nn.Identity(), [])


def test_absent_data_says_how_to_get_it(
    fashion: ModuleType, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion, "PLACE", "usr/share/datasets/absent")
    with pytest.raises(FileNotFoundError, match=r"fetch\.py fashion_resnet"):
        fashion.data("valid")


def test_other_data_than_the_pinned_are_refused(fashion: ModuleType, away: Path) -> None:
    place = away / "debian" / fashion.PLACE
    place.mkdir(parents=True)
    (place / "t10k-images-idx3-ubyte.gz").write_bytes(b"other images")
    with pytest.raises(ValueError, match="is not the pinned file"):
        fashion.data("test")


@pytest.mark.parametrize(("seed", "command"), [(0, "train.py\n"), (2, "train.py --seed 2\n")])
def test_absent_weights_name_the_script(
    fashion: ModuleType, away: Path, seed: int, command: str
) -> None:
    with pytest.raises(FileNotFoundError, match="was not found") as caught:
        fashion.build(seed)
    assert f"python examples/fashion_resnet/{command}" in str(caught.value)


def test_weights_of_another_network_are_refused(fashion: ModuleType, away: Path) -> None:
    path = fashion.save(nn.Linear(2, 2), fashion.weights())
    with pytest.raises(ValueError, match="does not hold this network's weights"):
        fashion.build()
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="does not hold this network's weights"):
        fashion.build()


def test_weights_are_written_whole_or_not_at_all(
    fashion: ModuleType, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(_held: object, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    path = fashion.save(fashion.FashionResNet(), fashion.weights(1))
    before = path.read_bytes()
    monkeypatch.setattr(fashion, "save_file", stops)
    with pytest.raises(OSError, match="disk full"):
        fashion.save(fashion.FashionResNet(), path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


def test_splits_are_disjoint(fashion: ModuleType) -> None:
    try:
        splits = [fashion.data(name) for name in ("train", "valid", "test")]
    except FileNotFoundError as error:
        pytest.skip(str(error).splitlines()[0])
    counts = [sum(len(y) for _, y in batches) for batches in splits]
    assert counts == [55_000, 5_000, 10_000]
    together = {row for batches in splits for row in rows(batches)}
    assert len(together) == 70_000
    images = torch.cat([x for x, _ in splits[0]])
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


# -- training --------------------------------------------------------------------------------------


def stripes(split: str) -> list[tuple[Tensor, Tensor]]:
    """Images with one bright row; the label says which."""
    generator = torch.Generator().manual_seed(len(split))
    y = torch.arange(40) % 10
    x = 0.1 * torch.randn(40, 1, 28, 28, generator=generator)
    x[torch.arange(40), 0, 2 * y + 3] += 2
    return [(x[:30], y[:30]), (x[30:], y[30:])]


@pytest.fixture
def script(away: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training script, on 40 images and in steps of 8."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    module = load(FOLDER / "train.py")
    monkeypatch.delitem(sys.modules, "model")
    monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(module.example, "data", stripes)
    return module


def test_training_writes_weights_that_load(
    script: ModuleType, fashion: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--seed", "3", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "seed 3, 1 epochs" in printed
    assert f"wrote {fashion.weights(3)}" in printed
    model = fashion.build(3)
    assert not model.training
    assert f"test {fashion.accuracy(model, stripes('test')):.4f}" in printed


def test_training_learns(script: ModuleType) -> None:
    losses: list[float] = []
    script.train(0, 10, lambda _step, loss: losses.append(loss))
    assert len(losses) == 50
    assert sum(losses[-5:]) < sum(losses[:5]) / 2


def test_the_same_seed_gives_the_same_weights(script: ModuleType) -> None:
    first, again, other = (script.train(seed, 1).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_training_without_data_says_how_to_get_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(_split: str) -> None:
        raise FileNotFoundError("get it with fetch.py")

    monkeypatch.setattr(script.example, "data", absent)
    assert script.main([]) == 1
    assert "error: get it with fetch.py" in capsys.readouterr().err
