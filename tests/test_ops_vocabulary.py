"""Vocabulary text: found by name, parsed when needed, and unable to name anything that is not
tensor compute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from lissom.grammar.diagnostics import LissomError, Source
from lissom.grammar.library import vocabulary
from lissom.grammar.library.vocabulary import Declarations, library, library_sources
from lissom.grammar.text.parse import parse, parse_part
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.vocabulary import Vocabulary

SWISH = """op swish(x: f[...]) -> f[...] {
  attr beta: float = 1.0
  trait elementwise
  meaning mylab.swish(x, beta)
  spelling mylab.Swish(x, beta)
}
"""


def swish(x: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    return x * torch.sigmoid(beta * x)


class Swish(nn.Module):
    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return swish(x, self.beta)


class Whole(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, Swish) or super().is_leaf_module(module, path)


OWN: dict[str, Callable[..., Any]] = {"mylab.swish": swish, "mylab.Swish": Swish}


def test_only_what_is_asked_for_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counted(source: Source, start: int, end: int) -> vocabulary.t.File:
        parsed.append(source.text[start:end])
        return parse_part(source, start, end)

    monkeypatch.setattr(vocabulary, "parse_part", counted)
    declarations = Declarations(Source(f"copy of {s.name}", s.text) for s in library_sources())
    assert "conv2d" in declarations.names()
    assert declarations.spellings()["torch.nn.ReLU6"] == ("hardtanh",)
    assert parsed == []
    assert declarations.op("conv2d") is declarations.op("conv2d")
    assert [text.partition("(")[0] for text in parsed] == ["op conv2d"]


def test_the_index_finds_exactly_what_parsing_finds() -> None:
    declarations = Declarations(library_sources())
    for source in library_sources():
        for op in parse(source.text, source.name).all(vocabulary.t.Op):
            assert declarations.op(op.name.text) == op
            found = declarations.op(op.name.text)
            assert found is not None
            assert str(found.name.span) == str(op.name.span)
    parsed = Declarations((), [parse(s.text, s.name) for s in library_sources() if "op " in s.text])
    assert parsed.spellings() == library().spellings()
    assert parsed.names() == library().names()


def test_the_grammar_side_does_not_import_torch() -> None:
    code = (
        "import sys; from lissom.grammar.library.vocabulary import library; "
        "assert library().op('conv2d'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_none() -> None:
    assert library().op("conv9d") is None
    assert library().extern("conv2d") is None
    assert Vocabulary.library().get("conv9d") is None
    with pytest.raises(KeyError):
        Vocabulary.library()["conv9d"]


def test_a_second_declaration_names_both_places() -> None:
    text = "op relu(x: f[...]) -> f[...] { meaning torch.relu(input = x) }\n"
    with pytest.raises(LissomError, match="N003") as caught:
        Vocabulary.from_files([parse(text, "mine.lissom")])
    assert "mine.lissom:1:4" in str(caught.value)
    assert "passes/ops_activation.lissom" in str(caught.value)
    with pytest.raises(LissomError, match="N003"):
        Declarations([Source("a", text), Source("b", text)])


def test_an_error_inside_a_statement_has_its_line_in_the_file() -> None:
    good = "op good(x: f) -> f { meaning torch.relu(input = x) }"
    text = f"# one\n\n{good}\nop bad(x: f) -> f {{\n  attr = 1\n}}\n"
    declarations = Declarations([Source("broken.lissom", text)])
    assert declarations.op("good") is not None
    with pytest.raises(LissomError, match=r"broken\.lissom:5:8"):
        declarations.op("bad")


def test_functions_and_layers_of_the_host_program() -> None:
    vocabulary = Vocabulary.from_files([parse(SWISH, "swish.lissom")], OWN)
    model = nn.Sequential(Swish(2.0))
    view = GraphView(fx.GraphModule(model, Whole().trace(model)), vocabulary)
    call = view.call(view.calls_of("swish")[0])
    assert call is not None
    assert call.attrs == {"beta": 2.0}
    x = torch.randn(3)
    assert torch.equal(call.op.run({"x": x}, {}, call.attrs), swish(x, 2.0))


def test_without_the_host_program_its_names_are_unknown() -> None:
    with pytest.raises(LissomError, match="T003"):
        Vocabulary.from_files([parse(SWISH, "swish.lissom")])


@pytest.mark.parametrize(
    "name",
    [
        "torch.load", "torch.save", "torch.hub", "torch.compile", "torch.nn.functional.importlib",
        "torch.nn.Module.apply", "torch.ops.load_library", "operator.methodcaller",
        "operator.attrgetter", "Tensor.numpy", "Tensor.data_ptr", "Tensor.apply_", "os.system",
        "builtins.eval", "torch.nn.modules", "torch.reluu", "torch.nn.Conv9d",
        "Tensor.register_hook", "torch.from_file", "torch.typename",
    ],
)  # fmt: skip
def test_a_declaration_cannot_name_anything_else(name: str) -> None:
    text = f"op strange(x: t) -> t {{ meaning {name}(x) }}"
    with pytest.raises(LissomError, match="T003") as caught:
        Vocabulary.from_files([parse(text, "strange.lissom")])
    assert "strange.lissom:1:" in str(caught.value)


def test_a_near_name_is_suggested() -> None:
    text = "op strange(x: t) -> t { meaning torch.nn.functional.rellu(x) }"
    with pytest.raises(LissomError, match="did you mean `relu`"):
        Vocabulary.from_files([parse(text, "strange.lissom")])


def test_an_op_without_a_meaning_says_so_when_it_is_run() -> None:
    text = "op strange(x: t) -> t { spelling torch.erfinv(input = x) }"
    vocabulary = Vocabulary.from_files([parse(text, "strange.lissom")])
    with pytest.raises(LissomError, match="has no meaning"):
        vocabulary["strange"].run({"x": torch.ones(1)}, {}, {})


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("dim A = B @ C", "cannot hold"),
        ("dim A = size(x)", "cannot hold"),
        ("cost macs = x.weight", "cannot hold"),
        ('attr a: int = [forall_(x)]', "cannot hold"),
    ],
)  # fmt: skip
def test_expressions_outside_a_declaration_are_refused(item: str, message: str) -> None:
    text = f"op strange(x: f[B, C]) -> f[A, C] {{\n  {item}\n  meaning torch.relu(input = x)\n}}"
    vocabulary = Vocabulary.from_files([parse(text, "strange.lissom")])
    with pytest.raises(LissomError, match=message):
        counted(vocabulary, {"x": (2, 3)})


def counted(vocabulary: Vocabulary, shapes: dict[str, tuple[int, ...]]) -> int:
    op = vocabulary["strange"]
    return op.macs(op.bind(shapes, {}))
