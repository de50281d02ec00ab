"""The demo, from an empty folder to a verified model: what newcomers run first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import lissom
from lissom.__main__ import main
from lissom.commands import demo as command
from lissom.grammar.library.program import load_program
from lissom.grammar.tree.tree import Ref, walk
from lissom.output import Output

from .demo_run import demo_run

HOME = Path(lissom.__path__[0]) / "demo"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder, and what the demo said as JSON. It takes the weights that another run of it, in
    a process of its own, has trained.
    """
    folder, (before, _) = tmp_path_factory.mktemp("demo") / "new", demo_run(tmp_path_factory)

    def train(out: Output, folder: Path) -> None:
        shutil.copy(before / "weights.safetensors", folder)

    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(command, "_train", train)
        patch.setattr("click.echo", lambda text="", **_: said.append(str(text)))
        assert main(["demo", "-o", str(folder), "--format", "json"]) == 0
    return folder, json.loads("\n".join(said))


def test_the_demo_applies_every_rule_of_its_program(demo: tuple[Path, dict[str, Any]]) -> None:
    program = load_program(HOME / "shrink.lissom")
    wanted = {node.rule.text for node in walk(program.file) if isinstance(node, Ref)}
    applied = {row["rule"].partition("(")[0] for row in demo[1]["rules"] if row["sites"]}
    assert applied == wanted
    assert {row["kind"] for row in demo[1]["rules"]} == {"exact", "approx"}


def test_the_demo_keeps_its_budget_and_halves_the_model(demo: tuple[Path, dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in demo[1]["compared"]}
    assert all(verdict["holds"] for verdict in demo[1]["verdicts"])
    for name in ("parameters", "file bytes", "MACs"):
        assert rows[name]["after"] < 0.6 * rows[name]["before"]
    assert rows["accuracy"]["before"] > 0.97
    assert rows["accuracy"]["after"] > rows["accuracy"]["before"] - 0.03


def test_the_demo_leaves_everything_to_play_with(demo: tuple[Path, dict[str, Any]]) -> None:
    folder = demo[0]
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert names == {"model.py", "shrink.lissom", "weights.safetensors", "plan.json", "small"}
    assert main(["verify", str(folder / "small"), "-q"]) == 0


def test_the_demo_overwrites_nothing_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shrink.lissom").write_text("# mine\n")
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "error[U005]" in capsys.readouterr().err
    assert (tmp_path / "shrink.lissom").read_text() == "# mine\n"


def test_the_demo_needs_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", "-o", str(tmp_path)]) == 4
    assert "lissom[demo]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_program_of_the_demo_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--strict", str(HOME / "shrink.lissom")]) == 0
    assert main(["fmt", "--check", str(HOME / "shrink.lissom")]) == 0
