"""Bad inputs, by their rows in docs/hard_cases.md: rule files, functions, models, artifacts."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import lissom
from lissom.__main__ import main
from lissom.grammar.diagnostics import LissomError
from lissom.grammar.library.program import load_program
from lissom.rewrite.store.files import write_file
from lissom.rewrite.store.folder import load, save

from .stored import Small, forge, refused
from .support import random_norms, run

RELU = "exact rule r {{ match {{ {} }} {} rewrite {{ {} }} }}"
X = torch.ones(2, 3)


def outcome(text: str, functions: dict[str, Any] | None = None) -> str:
    """The code that a program ends in on a model of one relu, or how often it was applied."""
    model = nn.Sequential(nn.ReLU()).eval()
    try:
        result = lissom.compile(model, text, inputs=(X,), functions=functions)
    except LissomError as error:
        return error.diagnostics[0].code if error.diagnostics[0].labels else "no place"
    assert torch.equal(result.model(X), model(X))
    return f"applied {len(result.applied)}"


# -- rule files ------------------------------------------------------------------------------------

CLAMP = "exact rule a { match { y = relu(x) } rewrite { y = clamp(x, min = 0) } }\n"
BACK = "exact rule b { match { y = clamp(x, min = 0, max = none) } rewrite { y = relu(x) } }\n"
CASES = {
    "I11 one name twice": (CLAMP + CLAMP, "N003"),
    "I14 a name that nothing binds": (RELU.format("y = relu(x)", "", "y = tanh(z)"), "N001"),
    "I15 a value bound again": (
        RELU.format("y = relu(x)", "let { x = 3 }", "y = tanh(x)"),
        "N003",
    ),
    "I22 a fixpoint of 10^17 steps": (
        CLAMP + "pipeline p { stage s { fixpoint max 100000000000000000 { a } } }",
        "applied 1",
    ),
    "I22 a fixpoint of 10^4000 steps": (
        CLAMP + f"pipeline p {{ stage s {{ fixpoint max 1{'0' * 4000} {{ a }} }} }}",
        "E005",
    ),
    "I23 a rule that matches what it makes": (
        RELU.format("y = relu(x)", "", "y = relu(x)"),
        "L001",
    ),
    "I24 a rule that grows": (RELU.format("y = relu(x)", "", "h = relu(x); y = relu(h)"), "L001"),
    "I25 a pair of inverse rules": (
        CLAMP + BACK + "pipeline p { stage s { fixpoint { a; b } } }",
        "L002",
    ),
    "I26 a pattern of one name": (RELU.format("y = x", "", "y = relu(x)"), "E001"),
    "I26 a pattern of any op": (RELU.format("y = _(x)", "", "y = x"), "V101"),
    "I27 a rewrite of another value": (RELU.format("y = relu(x)", "", "z = tanh(x)"), "N004"),
    "I27 no rewrite at all": ("exact rule r { match { y = relu(x) } }", "applied 0"),
    "I27 no pattern": (RELU.format("", "", "y = relu(x)"), "N001"),
    "I28 a function that no one declares": (
        RELU.format("y = relu(x)", "where { mine(x) }", "y = tanh(x)"),
        "N001",
    ),
    "I28 a function that no one gives": (
        "extern fn mine(x: any) -> bool pure\n"
        + RELU.format("y = relu(x)", "where { mine(x) }", "y = tanh(x)"),
        "N001",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rule_files_that_are_no_good(case: str) -> None:
    """I11, I14, I15, I22, I23, I24, I25, I26, I27, I28: the row begins each case's name."""
    text, expected = CASES[case]
    assert outcome(text) == expected


CODE = {
    "eval": RELU.format("y = relu(x)", 'where { eval("open(1)") }', "y = tanh(x)"),
    "a module": RELU.format("y = relu(x)", 'where { os.system("touch canary") }', "y = tanh(x)"),
    "a format": RELU.format("y = relu(x)", 'where { 1 == 2 else "{x.__class__}" }', "y = tanh(x)"),
    "a width": RELU.format("y = relu(x)", 'where { 1 == 2 else "{x:>99999999}" }', "y = tanh(x)"),
    "a meaning": "op bad(x: f[...]) -> f[...] { meaning os.system(x) }",
    "a loader": "op bad(x: f[...]) -> f[...] { meaning torch.load(x) }",
    "a library": "op bad(x: f[...]) -> f[...] { meaning torch.ops.load_library(x) }",
    "builtins": "op bad(x: f[...]) -> f[...] { meaning torch.__builtins__.eval(x) }",
}


@pytest.mark.parametrize("case", CODE)
def test_i63_a_rule_file_names_only_what_it_is_given(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I63: no eval, no import, no attribute of Python, no format specification."""
    monkeypatch.chdir(tmp_path)
    text = CODE[case]
    if text.startswith("op"):
        text += "\n" + RELU.format("y = bad(x)", "", "y = relu(x)")
    assert outcome(text) in ("N001", "T003", "T007", "E005")
    assert os.listdir(tmp_path) == []


# -- files that use files --------------------------------------------------------------------------


def uses(folder: Path, text: str) -> str:
    (folder / "main.lissom").write_text(text)
    with pytest.raises(LissomError) as caught:
        load_program(folder / "main.lissom")
    return str(caught.value)


def test_i12_files_that_use_each_other(tmp_path: Path) -> None:
    (tmp_path / "one.lissom").write_text("use two")
    (tmp_path / "two.lissom").write_text("use one")
    assert "`use one` is a circle" in uses(tmp_path, "use one")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "a/b", "~", '"../x"', "a.__b"])
def test_i13_a_use_cannot_even_spell_another_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.lissom").write_text("")
    (tmp_path / "inner").mkdir()
    assert uses(tmp_path / "inner", f"use {name}").startswith("error[E0")


def test_i13_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.lissom").write_text("# secret")
    (inner / "lab.lissom").symlink_to(tmp_path / "secret.lissom")
    assert "`use lab` leads outside its folder" in uses(inner, "use lab")
    (inner / "real.lissom").write_text("")
    (inner / "alias.lissom").symlink_to(inner / "real.lissom")
    (inner / "main.lissom").write_text("use alias")
    assert len(load_program(inner / "main.lissom").used) == 1


# -- what a caller's function may give -------------------------------------------------------------

WEIGHT = """
extern fn mine(w: f[...]) -> f[...] pure
exact rule r {
  match { h = linear(x) as l; y = relu(h) }
  rewrite { g = l(x, weight = mine(l.weight)) from l; y = clamp(g, min = 0) }
}
"""
FOREIGN = fx.Graph().placeholder("foreign")
GIVEN: dict[str, tuple[Any, str]] = {
    "a node of another graph": (FOREIGN, "T001"),
    "a layer": (nn.Linear(3, 3), "T001"),
    "text": ("os.system", "T001"),
    "a list": ([[1.0] * 3] * 3, "T001"),
    "any object": (object(), "T001"),
    "a sparse tensor": (torch.eye(3).to_sparse(), "T001"),
    "nothing": (None, "S002"),
    "a number": (5, "S002"),
    "another shape": (torch.ones(3), "S002"),
    "no memory": (torch.ones(3, 3, device="meta"), "V101"),
    "whole numbers": (torch.ones(3, 3, dtype=torch.int64), "V101"),
    "complex numbers": (torch.ones(3, 3, dtype=torch.complex64), "S001"),
    "NaN": (torch.full((3, 3), torch.nan), "V101"),
}


@pytest.mark.parametrize("case", GIVEN)
def test_i30_a_function_that_returns_something_else(case: str) -> None:
    """I30: each is named by a code and a place, and the graph holds nothing of it."""
    value, code = GIVEN[case]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    with pytest.raises(LissomError) as caught:
        run(model, X, WEIGHT, functions={"mine": lambda w: value})
    (found,) = caught.value.diagnostics
    assert found.code == code
    assert found.labels
    right = run(model, X, WEIGHT, functions={"mine": lambda w: w}).check()
    assert right.applied == 1


# -- models and plans that are no such files -------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("canary", "w")


def evil_files(folder: Path) -> list[str]:
    graph = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    torch.save(Evil(), folder / "evil.pt")
    torch.save({"graph": graph, "more": Evil()}, folder / "graph.pth")
    (folder / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    torch.jit.trace(nn.ReLU(), X).save(str(folder / "script.pt"))
    torch.export.save(torch.export.export(nn.Linear(3, 3), (X,)), folder / "program.pt2")
    return ["evil.pt", "graph.pth", "evil.pkl", "script.pt", "program.pt2"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_i31_pickles_scripts_and_exported_programs_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """I31, I32, I33, I34: as a model, a rule file, a plan or an artifact: refused, nothing run."""
    monkeypatch.chdir(tmp_path)
    names = evil_files(tmp_path)
    (tmp_path / "rules.lissom").write_text(CLAMP)
    (tmp_path / "net.py").write_text("from torch import nn\ndef build(): return nn.ReLU().eval()\n")
    for name in names:
        for code, arguments in (
            ("U002", ["apply", f"./{name}:build", "rules.lissom", "-o", "out"]),
            ("E004", ["check", name]),
            ("U006", ["apply", "net.py:build", "--plan", name, "-o", "out"]),
            ("A020", ["verify", name]),
        ):
            assert main(arguments) != 0, (name, arguments)
            assert f"error[{code}]" in capsys.readouterr().err, (name, arguments)
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()
    with open("evil.pkl", "rb") as file:
        pickle.load(file).close()
    assert (tmp_path / "canary").exists(), "the pickle is a weapon"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_i33_a_scripted_module_stays_whole_and_alone_it_is_refused(tmp_path: Path) -> None:
    scripted = torch.jit.trace(nn.Linear(3, 3).eval(), X)
    with pytest.raises(LissomError, match=r"M004(.|\n)*TorchScript(.|\n)*was scripted"):
        lissom.compile(scripted, CLAMP, inputs=(X,))
    result = lissom.compile(nn.Sequential(scripted, nn.ReLU()).eval(), CLAMP, inputs=(X,))
    assert [event.site for event in result.applied] == ["1"]
    with pytest.raises(LissomError, match=r"A010(.|\n)*--> 0"):
        result.save(tmp_path / "a")


# -- strange parameters ----------------------------------------------------------------------------


def test_i37_parameters_without_strides_of_their_own(tmp_path: Path) -> None:
    """Eight filters that are one: folding gives each a memory of its own; the model keeps its."""
    conv = nn.Conv2d(8, 8, 3)
    conv.weight = nn.Parameter(torch.randn(1, 8, 3, 3).expand(8, 8, 3, 3))
    model, x = random_norms(nn.Sequential(conv, nn.BatchNorm2d(8))), torch.randn(2, 8, 6, 6)
    driven = run(model, x, (Path(lissom.passes.__path__[0]) / "fold.lissom").read_text()).check()
    assert driven.sites("fold_bn") == ["0"]
    assert conv.weight.stride(0) == 0
    driven.module.recompile()
    assert torch.equal(load(save(driven.module, tmp_path / "a")).module(x), driven.module(x))


class Marked(torch.Tensor):
    """A tensor of another class, which torch cannot copy."""


def test_i43_parameters_of_another_class_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    model[0].weight = nn.Parameter(torch.ones(3, 3).as_subclass(Marked))
    assert type(model[0].weight) is Marked
    with pytest.raises(LissomError, match=r"M004(.|\n)*cannot be copied(.|\n)*new_empty"):
        lissom.compile(model, CLAMP, inputs=(X,))


# -- artifacts -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(fx.symbolic_trace(Small().eval()), tmp_path / "artifact")


@pytest.mark.skipif(sys.platform == "win32", reason="hard links as on Unix")
def test_i53_what_a_hard_link_leads_to_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    """Reading sees the right bytes, or a wrong hash; writing makes a new file."""
    outside = tmp_path / "outside"
    outside.write_bytes((folder / "graph.json").read_bytes())
    (folder / "graph.json").unlink()
    os.link(outside, folder / "graph.json")
    before = outside.read_bytes()
    assert load(folder).module(X)["y"].shape == (2, 3)
    save(fx.symbolic_trace(Small().eval()), folder)
    os.link(outside, tmp_path / "report")
    write_file(tmp_path / "report", b"new")
    assert outside.read_bytes() == before
    (folder / "graph.json").unlink()
    os.link(tmp_path / "report", folder / "graph.json")
    assert refused(folder) == "A021"


@pytest.mark.parametrize("change", ["overlap", "hole", "beyond", "backwards", "huge"])
def test_i57_tensors_that_share_bytes_of_the_file(folder: Path, change: str) -> None:
    """I56, I57: declared places that overlap, leave holes, lie outside or run backwards."""
    content = (folder / "weights.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = sorted(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )
    start, end = header[names[1]]["data_offsets"]
    header[names[1]]["data_offsets"] = {
        "overlap": [start - 4, end - 4],
        "hole": [start + 4, end + 4],
        "beyond": [len(body), len(body) + end - start],
        "backwards": [end, start],
        "huge": [start, 2**63],
    }[change]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    forge(folder, weights=struct.pack("<Q", len(text)) + text + body)
    assert refused(folder) in ("A025", "A027")
