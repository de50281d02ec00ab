"""How the code stands: floors, imports that point down only, short functions, files of one page."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["grammar", "rewrite", "passes", "lissom"]
"""From the ground up. Where an import names no floor, it names another package."""

MOST_LINES = 350
LONGEST = 50
MEDIAN = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files_of(floor: str) -> list[Path]:
    """The files of one floor; the links in lissom/ lead to other floors."""
    own = [path for path in (ROOT / floor).iterdir() if not path.is_symlink()]
    folders = [path for path in own if path.is_dir()]
    return sorted(
        [path for path in own if path.suffix == ".py"]
        + [path for folder in folders for path in folder.rglob("*.py")]
    )


FILES = [path for floor in FLOORS for path in files_of(floor)]


def module_of(path: Path) -> list[str]:
    """`grammar/parse.py` is `lissom.grammar.parse`; `lissom/api.py` is `lissom.api`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return list(parts if parts[0] == "lissom" else ("lissom", *parts))


def imports_of(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Line and absolute module name of every import, also of those inside functions."""
    package = module_of(path)[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def floor_of(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "lissom":
        return parts[0] if parts[0] in FLOORS else None
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "lissom"


def arrows_up(path: Path, text: str) -> list[str]:
    own = FLOORS.index(path.relative_to(ROOT).parts[0])
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imports_of(path, text)
        if (floor := floor_of(name)) is not None and FLOORS.index(floor) > own
    ]


def torch_imports(path: Path, text: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}"
        for line, name in imports_of(path, text)
        if name.split(".")[0] == "torch"
    ]


def functions_of(text: str) -> list[Function]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def test_every_floor_is_seen() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(FLOORS)
    assert len(FILES) > 40


def test_imports_point_down_only() -> None:
    assert [arrow for path in FILES for arrow in arrows_up(path, path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("grammar/parse.py", "from ..rewrite.match import match"),
        ("grammar/parse.py", "from .. import rewrite"),
        ("grammar/parse.py", "from lissom import api"),
        ("grammar/parse.py", "import lissom.passes.lowrank"),
        ("rewrite/match.py", "def f():\n    from ..passes import functions"),
        ("rewrite/match.py", "from .. import __main__"),
        ("rewrite/match.py", "import passes"),
        ("passes/lowrank.py", "from ..api import compile"),
    ],
)
def test_an_arrow_up_would_be_seen(file: str, line: str) -> None:
    assert len(arrows_up(ROOT / file, line)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("grammar/parse.py", "from .tree import File\nfrom . import tree\nimport lark"),
        ("passes/lowrank.py", "from ..rewrite.match import match\nfrom lissom.grammar import tree"),
        ("lissom/api.py", "from .passes import lowrank\nfrom . import rewrite"),
    ],
)
def test_an_arrow_down_is_welcome(file: str, line: str) -> None:
    assert arrows_up(ROOT / file, line) == []


def test_the_language_never_names_torch() -> None:
    language = files_of("grammar")
    assert [at for path in language for at in torch_imports(path, path.read_text("utf-8"))] == []
    assert torch_imports(ROOT / "grammar/a.py", "def f():\n    from torch import nn")


PRIVATE = frozenset({"_version", "_schema", "_sort_key", "_erased", "_codegen"})
"""Attributes of tensors, operators, nodes and graphs that have no public name."""


def private_names(path: Path, text: str) -> list[str]:
    """Where torch is asked for what it does not promise."""
    tree = ast.parse(text)
    imported = (name for _, name in imports_of(path, text) if name.startswith("torch."))
    found = [name for name in imported if any(_is_private(part) for part in name.split("."))]
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
        chain = ast.unparse(node)
        if node.attr in PRIVATE or (chain.startswith("torch.") and _is_private(node.attr)):
            found.append(chain)
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_one_file_holds_what_torch_does_not_promise() -> None:
    others = [path for path in FILES if path.name != "torch_internals.py"]
    found = {path.name: private_names(path, path.read_text("utf-8")) for path in others}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from torch.utils._pytree import tree_map", "torch.utils._pytree.tree_map"),
        ("from torch.fx.node import _side", "torch.fx.node._side"),
        ("import torch\ntorch._C.f()", "torch._C"),
        ("f(node._erased)", "node._erased"),
    ],
)
def test_a_name_that_torch_does_not_promise_would_be_seen(line: str, name: str) -> None:
    assert private_names(ROOT / "rewrite/match.py", line) == [name]


@pytest.mark.parametrize("module", ["lissom.grammar.check", "lissom.grammar.format", "lissom"])
def test_the_language_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr


def test_no_function_is_long() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {length(function)} lines"
        for path in FILES
        for function in functions_of(path.read_text("utf-8"))
        if length(function) > LONGEST
    ]
    assert long == []


def test_functions_are_short_in_the_median() -> None:
    lengths = [length(f) for path in FILES for f in functions_of(path.read_text("utf-8"))]
    assert statistics.median(lengths) <= MEDIAN


def test_no_file_is_long() -> None:
    counts = {path.relative_to(ROOT): path.read_text("utf-8").count("\n") for path in FILES}
    assert {str(path): count for path, count in counts.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("name", ["grammar", "rewrite", "passes", "demo"])
def test_the_floors_are_linked_into_the_package(name: str) -> None:
    link = ROOT / "lissom" / name
    assert link.is_symlink()
    assert (link / "__init__.py").is_file()
