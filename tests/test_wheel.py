"""The wheel: built from a copy of the tree, it works where the checkout is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KEPT = ["lissom", "grammar", "rewrite", "passes", "examples/digits"]
"""The folders that are packaged."""

pytestmark = pytest.mark.slow


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Standard output of a command that has to succeed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=env | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tree") / "copy"
    clutter = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in KEPT:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=clutter)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    out = copy.parent / "dist"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), cwd=copy)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target")
    run(*pip, str(target), str(wheel), cwd=target)
    return target


def test_the_wheel_holds_one_package_and_all_of_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lissom"}
    expected = {"lissom/py.typed", "lissom/grammar/lissom.lark", "lissom/grammar/tables.json"}
    for folder in ("grammar", "rewrite", "passes"):
        files = [
            path.name for path in (ROOT / folder).iterdir() if path.suffix in {".py", ".lissom"}
        ]
        expected |= {f"lissom/{folder}/{name}" for name in files}
    assert expected - set(names) == set()
    assert "lissom/demo/model.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_package_is_used_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, lissom.grammar.text.parse as p, lissom.passes, lissom.demo\n"
        "p.parse('use a')\n"
        "modules = (p, lissom.passes, lissom.demo)\n"
        "print('lark' in sys.modules, *(module.__file__ for module in modules), sep='\\n')"
    )
    built, *files = run(
        sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)
    ).splitlines()
    assert built == "False", "the tables of the wheel are stale: the grammar was built again"
    assert len(files) == 3
    assert all(Path(file).is_relative_to(installed) for file in files)


@pytest.mark.skipif(not (ROOT / "lissom/__main__.py").exists(), reason="no command line here")
def test_the_command_line_answers_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "lissom", "--help")
    assert "Usage" in run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
