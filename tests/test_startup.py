"""What a command may load: each of these packages would cost more than the command itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "networkx", "sympy", "rich", "lark", "sklearn", "safetensors")

RULES = """
exact rule drop_dropout {
  match { y = dropout(x) as d }
  where { mode(d) == eval }
  rewrite { y = x }
}
pipeline own { stage fold { fixpoint { drop_dropout; fold_bn } } }
"""
"""A rule, and a pipeline that also names one of the library: all passes of the checker run."""


def loaded_by(*arguments: str) -> tuple[int, set[str]]:
    """The exit code of a command, and the modules that are loaded when it ends."""
    code = f"""if True:
        import sys
        from lissom.__main__ import main
        code = main({list(arguments)!r})
        print(code, *sys.modules, file=sys.stderr)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    code_text, *modules = run.stderr.split("\n")[-2].split()
    return int(code_text), set(modules)


@pytest.mark.parametrize("options", [(), ("--format", "json"), ("--strict",)])
def test_check_loads_no_large_package(options: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "own.lissom"
    path.write_text(RULES)
    code, modules = loaded_by("check", str(path), *options)
    assert code == 0
    assert modules.isdisjoint(HEAVY)


def test_check_loads_no_other_command_and_only_the_language(tmp_path: Path) -> None:
    path = tmp_path / "own.lissom"
    path.write_text(RULES)
    _, modules = loaded_by("check", str(path))
    commands = {name for name in modules if name.startswith("lissom.commands.")}
    assert commands == {"lissom.commands.check"}
    assert not any(name.startswith(("lissom.rewrite", "lissom.passes.")) for name in modules)


@pytest.mark.parametrize("command", ["--help", "fmt", "new"])
def test_commands_for_rule_files_load_no_large_package(command: str, tmp_path: Path) -> None:
    path = tmp_path / "own.lissom"
    if command == "fmt":
        path.write_text(RULES)
    rest = {"fmt": [str(path)], "new": ["rule", "own", "-o", str(path)]}.get(command, [])
    code, modules = loaded_by(command, *rest)
    assert code == 0
    assert path.exists() == bool(rest)
    assert modules.isdisjoint(HEAVY)


def test_a_wrong_program_loads_no_large_package(tmp_path: Path) -> None:
    path = tmp_path / "own.lissom"
    path.write_text(RULES.replace("dropout(x)", "dropuot(x)"))
    code, modules = loaded_by("check", str(path))
    assert code == 2
    assert modules.isdisjoint(HEAVY)


def test_the_engine_loads_no_package_for_what_seldom_happens() -> None:
    """Paths in graphs of rules are looked for where rules do not come to an end."""
    code = "import sys, lissom.api; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    modules = set(run.stdout.split())
    assert "lissom.rewrite.pipeline.loops" in modules
    assert "networkx" not in modules


def test_a_large_package_would_be_seen() -> None:
    _, modules = loaded_by("doctor")
    assert "torch" in modules
