"""What a stranger may have made of an artifact: found before use, never run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.store.folder import load, save

from .stored import Small, canonical, forge, refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = fx.symbolic_trace(Small().eval())
    return save(module, tmp_path / "artifact", {"plan.json": b"{}"})


def graph_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "graph.json").read_bytes())


def node(graph: dict[str, Any], op: str, number: int = 0) -> dict[str, Any]:
    return [spec for spec in graph["nodes"] if spec["op"] == op][number]


# -- a graph with right hashes ---------------------------------------------------------------------

CANARY = "open('canary','w')"
Change = Callable[[dict[str, Any]], None]


def setting(op: str, field: str, value: object, number: int = 0) -> Change:
    def change(graph: dict[str, Any]) -> None:
        node(graph, op, number)[field] = value

    return change


def renaming(op: str, name: str) -> Change:
    """Give a node another name, and its users too."""

    def change(graph: dict[str, Any]) -> None:
        old = node(graph, op)["name"]
        text = json.dumps(graph["nodes"]).replace(json.dumps(old), json.dumps(name))
        graph["nodes"] = json.loads(text)

    return change


def tensor(field: str, value: object, number: int = 0) -> Change:
    def change(graph: dict[str, Any]) -> None:
        graph["tensors"][number][field] = value

    return change


def module(field: str, value: object) -> Change:
    def change(graph: dict[str, Any]) -> None:
        graph["modules"][0][field] = value

    return change


def argument(name: str, value: object) -> Change:
    def change(graph: dict[str, Any]) -> None:
        graph["modules"][0]["args"][name] = value

    return change


def sharing(*pairs: tuple[str, str]) -> Change:
    def change(graph: dict[str, Any]) -> None:
        graph["modules"] += [{"path": path, "same_as": known} for path, known in pairs]

    return change


def nest(graph: dict[str, Any], levels: int, doubled: bool) -> None:
    """Each level holds the one before it, once or twice: short paths, deep or countless places."""
    empty = {"class": "Module", "args": {}, "training": False}
    for level in range(levels):
        graph["modules"].append({"path": f"m{level}", **empty})
        for name in "ab"[: 1 + doubled] if level else "":
            graph["modules"].append({"path": f"m{level}.{name}", "same_as": f"m{level - 1}"})


X = {"node": "x"}
HOSTILE: dict[str, tuple[str, Change]] = {
    "call in an input name": ("A016", setting("placeholder", "target", f"x={CANARY}")),
    "call after stars": ("A016", setting("placeholder", "target", f"***x,y={CANARY}")),
    "keyword as input": ("A016", setting("placeholder", "target", "class")),
    "self as input": ("A016", setting("placeholder", "target", "self")),
    "dunder as input": ("A016", setting("placeholder", "target", "__import__")),
    "call in a node name": ("A016", renaming("call_function", f"a;{CANARY}")),
    "newline in a node name": ("A016", renaming("call_function", f"a\n{CANARY}")),
    "keyword as a node name": ("A016", renaming("call_function", "lambda")),
    "self as a node name": ("A016", renaming("call_function", "self")),
    "torch as a node name": ("A025", renaming("call_function", "torch")),
    "letters beyond ASCII": ("A016", renaming("call_function", "\u2118")),
    "quote in a module path": ("A016", setting("call_module", "target", f'a"),{CANARY},("')),
    "dunder in a module path": ("A016", setting("call_module", "target", "one.__class__")),
    "attribute that is no module": ("A026", setting("call_module", "target", "one.weight")),
    "method of the module": ("A026", setting("get_attr", "target", "forward")),
    "code as a method": ("A014", setting("call_method", "target", f"view({CANARY})#")),
    "method that runs Python": ("A014", setting("call_method", "target", "apply_")),
    "pickling method": ("A014", setting("call_method", "target", "__reduce_ex__")),
    "method of a constant": ("A014", setting("call_method", "args", ["text"])),
    "os.system": ("A013", setting("call_function", "target", "os.system")),
    "eval": ("A013", setting("call_function", "target", "eval")),
    "builtins.eval": ("A013", setting("call_function", "target", "builtins.eval")),
    "torch.load": ("A013", setting("call_function", "target", "torch.load")),
    "torch.hub.load": ("A013", setting("call_function", "target", "torch.hub.load")),
    "torch.save": ("A013", setting("call_function", "target", "torch.save")),
    "attrgetter": ("A013", setting("call_function", "target", "operator.attrgetter")),
    "operator.call": ("A013", setting("call_function", "target", "operator.call")),
    "from_file": ("A013", setting("call_function", "target", "torch.ops.aten.from_file.default")),
    "dunder operator": ("A013", setting("call_function", "target", "torch.ops.aten.__class__.x")),
    "library loader": ("A013", setting("call_function", "target", "torch.ops.load_library.a.b")),
    "unknown attribute": (
        "A015",
        lambda g: node(g, "call_function").update(
            target="getattr", args=[X, "__class__"], kwargs={}
        ),
    ),
    "code as a keyword": ("A016", setting("call_function", "kwargs", {f"a={CANARY},b": 1})),
    "dunder as a keyword": ("A016", setting("call_function", "kwargs", {"__a": 1})),
    "unknown node": ("A025", setting("output", "args", [{"node": "nobody"}])),
    "node used before it is": ("A025", lambda g: g["nodes"].reverse()),
    "two outputs": ("A025", lambda g: g["nodes"].append({**g["nodes"][-1], "name": "o"})),
    "no output": ("A025", lambda g: g["nodes"].pop()),
    "no nodes": ("A025", lambda g: g["nodes"].clear()),
    "repeated name": ("A025", lambda g: g["nodes"].insert(1, copy.deepcopy(g["nodes"][0]))),
    "unknown operation": ("A025", setting("call_module", "op", "exec")),
    "unknown value": ("A025", setting("output", "args", [{"pickle": "gASV"}])),
    "two keys": ("A025", setting("output", "args", [{"list": [], "tuple": []}])),
    "bare list": ("A025", setting("output", "args", [[1]])),
    "unhashable key": ("A025", setting("output", "args", [{"dict": [[{"list": []}, 1]]}])),
    "unknown device": ("A025", setting("output", "args", [{"device": f"cpu'),{CANARY}"}])),
    "unknown dtype": ("A025", setting("output", "args", [{"torch": "load"}])),
    "long slice": ("A025", setting("output", "args", [{"slice": [1, 2, 3, 4]}])),
    "user class": ("A010", module("class", "os.system")),
    "lazy class": ("A010", module("class", "LazyLinear")),
    "parallel class": ("A010", module("class", "DataParallel")),
    "unknown argument": ("A025", argument("device", "cuda")),
    "wrong argument": ("A025", argument("in_features", "x")),
    "endless layer": ("A025", argument("in_features", 2**62)),
    "wider layer": ("A025", argument("in_features", 4)),
    "negative layer": ("A025", argument("in_features", -3)),
    "no arguments": ("A025", module("args", {})),
    "dunder module": (
        "A016",
        lambda g: g["modules"].append({"path": "__class__", "same_as": "one"}),
    ),
    "module over a method": ("A025", module("path", "forward")),
    "module without a parent": ("A025", module("path", "nobody.one")),
    "module in itself": ("A025", lambda g: g["modules"].append({"path": "one.a", "same_as": ""})),
    "module in its own child": ("A025", sharing(("one.a", "one"))),
    "modules in each other": ("A025", sharing(("one.a", "two"), ("two.a", "one"))),
    "endless doubling": ("A025", lambda g: nest(g, 40, doubled=True)),
    "endless depth by sharing": ("A025", lambda g: nest(g, 3000, doubled=False)),
    "endless depth": ("A018", sharing((".".join("a" * 100), "one"))),
    "many layers": (
        "A025",
        lambda g: g["modules"].append(
            {
                "path": "rnn",
                "class": "LSTM",
                "args": {"input_size": 1, "hidden_size": 1, "num_layers": 10**12},
                "training": False,
            }
        ),
    ),
    "layer without its tensors": (
        "A025",
        lambda g: g["modules"].append(
            {"path": "more", "class": "PReLU", "args": {}, "training": False}
        ),
    ),
    "tensor over a method": ("A025", tensor("path", "forward", -1)),
    "tensor over an attribute": ("A025", tensor("path", "one.in_features", -1)),
    "tensor of a dunder": ("A016", tensor("path", "__dict__", -1)),
    "tensor twice": ("A025", lambda g: g["tensors"].append(copy.deepcopy(g["tensors"][0]))),
    "tensor of no module": ("A025", tensor("path", "nobody.weight", -1)),
    "unknown tie": (
        "A025",
        lambda g: g["tensors"].append({"path": "t", "slot": "buffer", "same_as": "u"}),
    ),
    "tie of another kind": (
        "A025",
        lambda g: g["tensors"].append({"path": "t", "slot": "parameter", "same_as": "scale"}),
    ),
    "tensor left out": ("A025", lambda g: g["tensors"].pop(1)),
    "other shape": ("A027", tensor("shape", [3, 2], 1)),
    "negative shape": ("A025", tensor("shape", [-2], 1)),
    "endless shape": ("A025", tensor("shape", [2**40, 2**40], 1)),
    "other dtype": ("A027", tensor("dtype", "int32", 0)),
    "unknown dtype of a tensor": ("A025", tensor("dtype", "object", 1)),
    "stride beyond memory": ("A027", lambda g: set_views(g, "stride", [7, 5])),
    "offset beyond memory": ("A027", lambda g: set_views(g, "offset", 1)),
    "negative stride": ("A025", lambda g: set_views(g, "stride", [-1, 1])),
    "unknown data": ("A027", lambda g: set_views(g, "data", "../../x")),
    "gradients of integers": ("A025", tensor("requires_grad", 1, 1)),
    "more fields": ("A025", tensor("note", "", 1)),
    "unknown slot": ("A025", tensor("slot", "hook", 1)),
    "more parts": ("A025", lambda g: g.update(code=CANARY)),
}


def set_views(graph: dict[str, Any], field: str, value: object) -> None:
    entry = next(entry for entry in graph["tensors"] if "stride" in entry)
    entry[field] = value


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_graph_is_refused_and_runs_nothing(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I35, I50, I60."""
    monkeypatch.chdir(tmp_path)
    code, change = HOSTILE[case]
    graph = graph_of(folder)
    change(graph)
    before = sorted(path.name for path in tmp_path.iterdir())
    forge(folder, graph=canonical(graph))
    assert refused(folder) == code
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not list(tmp_path.rglob("canary"))


def test_a_forged_graph_without_a_change_is_read(folder: Path) -> None:
    forge(folder, graph=canonical(graph_of(folder)))
    assert load(folder).module(torch.ones(1, 3))["y"].shape == (1, 3)


def test_a_string_argument_stays_a_string(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = graph_of(folder)
    text = f"'\"\\\n\ud800{{}}{CANARY}#"
    node(graph, "output")["args"] = [{"dict": [[text, text]]}]
    forge(folder, graph=canonical(graph))
    assert load(folder).module(torch.ones(1, 3)) == {text: text}
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("node", "a=1"),
        ("placeholder", "x=open('canary','w')"),
        ("module", 'a"b'),
        ("keyword", "a b"),
    ],
)
def test_hostile_names_are_refused_at_saving_too(where: str, name: str, tmp_path: Path) -> None:
    """I35."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("layer", (x,))
    graph.output(y)
    made = fx.GraphModule({"layer": nn.Sequential()}, graph)
    if where == "node":
        y.name = name
    if where == "placeholder":
        x.target = name
    if where == "module":
        made.layer.add_module(name, nn.ReLU())
    if where == "keyword":
        y.kwargs = {name: 1}
    with pytest.raises(LissomError, match=r"A016(.|\n)*= help: rename"):
        save(made, tmp_path / "a")
    assert not (tmp_path / "a").exists()
