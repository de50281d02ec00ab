"""How the code stands: floors and rooms, imports that point down only, what is short."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

from lissom.grammar.library.vocabulary import library

ROOT = Path(__file__).parent.parent
FLOORS = ["grammar", "rewrite", "passes", "lissom"]
"""From the ground up. Where an import names no floor, it names another package."""

ROOMS = {
    "grammar": "reached documents diagnostics codes words algebra tree text library fmt checks",
    "rewrite": "runtime torch_internals journal ops store graph measure capture channels rules "
    "match apply exits targets train pipeline explain evidence export proving",
    "lissom": "output options model_file jobs report commands cli api __init__ __main__",
}
"""The folders of a floor, and files that are a room of their own, from the ground up: what each is
for stands in docs/architecture.md.
"""

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
    """`grammar/text/parse.py` is `lissom.grammar.text.parse`; `lissom/api.py` is `lissom.api`."""
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
        ("grammar/text/parse.py", "from ...rewrite.match.match import match"),
        ("grammar/codes.py", "from .. import rewrite"),
        ("grammar/text/parse.py", "from lissom import api"),
        ("grammar/text/parse.py", "import lissom.passes.lowrank"),
        ("rewrite/match/match.py", "def f():\n    from ...passes import functions"),
        ("rewrite/match/match.py", "from ... import __main__"),
        ("rewrite/match/match.py", "import passes"),
        ("passes/lowrank.py", "from ..api import compile"),
    ],
)
def test_an_arrow_up_would_be_seen(file: str, line: str) -> None:
    assert len(arrows_up(ROOT / file, line)) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (
            "grammar/text/parse.py",
            "from ..tree.tree import File\nfrom ..tree import tree\nimport lark",
        ),
        ("passes/lowrank.py", "from ..rewrite.match import match\nfrom lissom.grammar import tree"),
        ("lissom/api.py", "from .passes import lowrank\nfrom . import rewrite"),
    ],
)
def test_an_arrow_down_is_welcome(file: str, line: str) -> None:
    assert arrows_up(ROOT / file, line) == []


# -- rooms -----------------------------------------------------------------------------------------


def room_of(name: str) -> tuple[str, str] | None:
    """Floor and room of a module: `lissom.rewrite.ops.call` is in `rewrite`, `ops`."""
    floor = floor_of(name)
    if floor not in ROOMS:
        return None
    inside = name.removeprefix("lissom.").removeprefix(f"{floor}.").split(".")
    room = inside[0] if inside[0] in ROOMS[floor].split() else "__init__"
    return floor, room


def stairs_up(path: Path, text: str) -> list[str]:
    """Imports of a room that stands higher on the same floor."""
    own = room_of(".".join(module_of(path)))
    if own is None:
        return []
    order = ROOMS[own[0]].split()
    found = ((line, name, room_of(name)) for line, name in imports_of(path, text))
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name, room in found
        if room is not None and room[0] == own[0] and room[1] in order
        if order.index(room[1]) > order.index(own[1])
    ]


@pytest.mark.parametrize("floor", ROOMS)
def test_every_file_is_in_a_room(floor: str) -> None:
    inside = [path.relative_to(ROOT / floor) for path in files_of(floor)]
    rooms = {path.parts[0].removesuffix(".py") for path in inside} - {"__init__"}
    assert rooms == set(ROOMS[floor].split()) - {"__init__"}


def test_rooms_look_down_only() -> None:
    assert [up for path in FILES for up in stairs_up(path, path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("rewrite/ops/call.py", "from ..graph.index import View"),
        ("rewrite/journal.py", "from .ops.call import Call"),
        ("rewrite/match/match.py", "from lissom.rewrite.proving.trial import Trial"),
        ("grammar/tree/tree.py", "def f():\n    from ..text.parse import parse"),
        ("lissom/jobs/testing.py", "from ..report import tables"),
    ],
)
def test_a_room_that_looks_up_would_be_seen(file: str, line: str) -> None:
    assert len(stairs_up(ROOT / file, line)) == 1


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    graph = nx.DiGraph([(a, b) for a, ends in arrows.items() for b in ends if b in arrows])
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_no_modules_import_each_other() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        names = {name for _, name in imports_of(path, path.read_text("utf-8"))}
        ends = names | {name.rpartition(".")[0] for name in names}
        arrows[".".join(module_of(path))] = ends - {".".join(module_of(path))}
    assert circles(arrows) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c"]]


def test_every_room_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {path.parent for path in FILES if path.name == "__init__.py"}
    rooms = {".".join(module_of(folder / "__init__.py")[:-1]) for folder in folders}
    assert set(listed["packages"]) == rooms | {"lissom.demo"}


def test_every_room_is_described() -> None:
    """The tables of docs/architecture.md have the rooms in their order."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    own = [room for rooms in ROOMS.values() for room in rooms.split() if room[0] != "_"]
    assert [row for row in rows if "/" not in row] == own


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(
        r"`((?:grammar|rewrite|lissom|passes|tests|benchmarks)/[\w/.]+)`", page.read_text("utf-8")
    )
    gone = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert gone == []


# -- torch -----------------------------------------------------------------------------------------


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
    assert private_names(ROOT / "rewrite/match/match.py", line) == [name]


@pytest.mark.parametrize(
    "module", ["lissom.grammar.checks.check", "lissom.grammar.fmt.format", "lissom"]
)
def test_the_language_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr


# -- ops -------------------------------------------------------------------------------------------

ALL = "*"
MAY_NAME_OPS = {
    "functions and methods of torch, by the names that torch gives them": {
        "ops/aten.py": ALL,
        "ops/reported.py": ALL,
        "graph/scalars.py": ALL,
        "capture/tracer.py": "unbind split chunk",
        "capture/instruments.py": "tanh relu mul",
        "measure/twins.py": "dropout clone detach",
        "pipeline/layout.py": "contiguous",
    },
    "settings and layers, by the words that torch has for their values": {
        "channels/classes.py": "amin",
        "channels/movement.py": "pad",
        "export/qdq.py": "relu",
        "ops/layers.py": "dropout",
        "proving/models/settings.py": "any floor trunc tanh linear",
        "proving/trial.py": "dropout",
        "runtime/int8.py": "relu hardswish",
        "runtime/kernels.py": "relu hardswish hardtanh sum",
        "store/layers.py": "dropout relu gelu",
    },
    "words of rules and of declarations: types, functions, clauses": {
        "apply/exits.py": "exit_at",
        "match/site.py": "clone",
        "ops/declaration.py": "any",
        "ops/dims.py": "max min sum",
        "ops/example_calls.py": "any",
        "rules/scope.py": "all",
        "proving/guards/predicates.py": "abs",
        "proving/mutants/alter_values.py": "einsum max min",
        "proving/mutants/pieces.py": "abs sqrt exp",
    },
    "English": {
        "capture/structure.py": "contiguous",
        "proving/mutants/pieces.py": "mean sum",
    },
    "arithmetic that only code can hold; what is missing there is an opaque function": {
        "proving/algebra/field_ops.py": ALL,
        "proving/algebra/field_tensor.py": ALL,
    },
    "functions that compressed models run, which have the names of the ops that they compute": {
        "runtime/__init__.py": ALL,
    },
    "models and mistakes that the tester writes with ops of the library": {
        "proving/dims/drawing.py": ALL,
        "proving/dims/models.py": ALL,
        "proving/dims/moves.py": ALL,
        "proving/dims/near.py": ALL,
        "proving/dims/steps.py": ALL,
        "proving/exits/mutants.py": "mul neg relu",
        "proving/models/builder.py": "relu tanh neg sigmoid",
        "proving/models/pattern_builder.py": "contiguous clone",
        "proving/mutants/alter_steps.py": "abs cast flip neg relu roll tanh",
        "proving/params/near.py": "sum",
        "proving/values/mutants.py": "mul neg",
    },
}
"""Why a module of the engine may hold a literal that is the name of a declared op, and which: what
an op is, its declaration says. docs/architecture.md gives the reasons.
"""

OPS = frozenset(library().names())


def literals(text: str) -> set[str]:
    """The strings that are names of ops; docstrings are none."""
    tree = ast.parse(text)
    said = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in said)
    words = (word for n in nodes if isinstance(n.value, str) for word in whole_words(n.value))
    return OPS & set(words)


def whole_words(text: str) -> list[str]:
    """The string itself; each of several names in a row, `"relu clamp".split()`, if all are ops."""
    parts = text.split()
    return parts if len(parts) > 1 and set(parts) <= OPS else [text]


def asks_for_ops(text: str) -> list[str]:
    """Comparisons of an op's name, and look-ups in a vocabulary, with a literal."""
    tree = ast.parse(text)
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Compare) and is_op_name(n.left)]
    inside = [child for n in found for c in n.comparators for child in ast.walk(c)]
    keys = (n for n in ast.walk(tree) if isinstance(n, ast.Subscript))
    inside += [n.slice for n in keys if ast.unparse(n.value).endswith("vocabulary")]
    return [n.value for n in inside if isinstance(n, ast.Constant) and n.value in OPS]


def is_op_name(node: ast.expr) -> bool:
    """`call.op.name`, `spec.name`, `op_name`."""
    return re.fullmatch(r"(.*\.)?(op|spec)(\.name|_name)", ast.unparse(node)) is not None


def test_what_an_op_is_its_declaration_says() -> None:
    allowed: dict[str, set[str]] = {}
    for modules in MAY_NAME_OPS.values():
        for name, words in modules.items():
            allowed.setdefault(name, set()).update(words.split())
    engine = ROOT / "rewrite"
    texts = {str(p.relative_to(engine)): p.read_text("utf-8") for p in files_of("rewrite")}
    found = {name: words for name, text in texts.items() if (words := literals(text))}
    new = {n: w - allowed.get(n, set()) for n, w in found.items() if ALL not in allowed.get(n, ())}
    assert {name: words for name, words in new.items() if words} == {}
    stale = {n: w - found.get(n, set()) - {ALL} for n, w in allowed.items()}
    assert {name: words for name, words in stale.items() if words} == {}
    assert allowed.keys() <= found.keys()
    assert {name: asked for name, text in texts.items() if (asked := asks_for_ops(text))} == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('if call.op.name == "conv2d": pass', {"conv2d"}),
        ('_TABLE = {"batch_norm": 1, "batch": 2}', {"batch_norm"}),
        ('_SELECTING = "relu clamp".split()', {"relu", "clamp"}),
        ('"""relu"""', set()),
        ('message = "relu of it"', set()),
    ],
)
def test_a_literal_that_names_an_op_would_be_seen(line: str, words: set[str]) -> None:
    assert literals(line) == words


@pytest.mark.parametrize(
    "line",
    [
        'call.op.name == "where"',
        'spec.name in ("sum", "any")',
        'op_name != "max"',
        'state.vocabulary["split"]',
    ],
)
def test_an_op_that_is_asked_for_by_name_would_be_seen(line: str) -> None:
    """Also where another meaning of the word is welcome."""
    assert asks_for_ops(line) != []


def test_why_a_module_names_ops_is_said() -> None:
    text = " ".join((ROOT / "docs" / "architecture.md").read_text("utf-8").split())
    assert [reason for reason in MAY_NAME_OPS if reason not in text] == []


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


def public_classes(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_no_public_class_has_two_meanings() -> None:
    found: dict[str, list[Path]] = {}
    for path in FILES:
        for name in public_classes(path):
            found.setdefault(name, []).append(path)
    assert len(found) > 300
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_file_is_long() -> None:
    counts = {path.relative_to(ROOT): path.read_text("utf-8").count("\n") for path in FILES}
    assert {str(path): count for path, count in counts.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("name", ["grammar", "rewrite", "passes", "demo"])
def test_the_floors_are_linked_into_the_package(name: str) -> None:
    link = ROOT / "lissom" / name
    assert link.is_symlink()
    assert (link / "__init__.py").is_file()
