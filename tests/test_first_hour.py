"""What somebody tries before having written a rule: plan by name, show, explain, a pipeline to
start from, and what Python prints.
"""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.__main__ import main
from lissom.grammar.library.program import program_of
from lissom.grammar.library.vocabulary import library_sources
from lissom.grammar.words import words
from lissom.jobs.named_program import every_exact, program_named
from lissom.passes.functions import FUNCTIONS
from lissom.report.reference import entries, page
from lissom.rewrite.pipeline.compile import Options, compile_model

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        return torch.special.bessel_j0(self.head(x.view(x.size(0), -1)))

def build():
    torch.manual_seed(0)
    return Net().eval()

def inputs():
    return (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    return "net.py:build"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict:
    assert main([*arguments, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


# -- plan ------------------------------------------------------------------------------------------


def test_a_rule_is_planned_by_its_name(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "plan", model, "fold_bn", "-o", "plan.json")
    assert [(row["rule"], row["sites"]) for row in found["rules"]] == [("fold_bn", ["stem.0"])]
    assert main(["apply", model, "--plan", "plan.json", "-o", "out"]) == 0
    assert lissom.load("out")(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_its_parameters_are_set_on_the_command_line(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--set", "ratio=25%", "--set", "drift=90%")
    (row,) = answer(capsys, "plan", model, "prune_l1", *given)["rules"]
    assert row["rule"].startswith("prune_l1(ratio = 25%")
    assert row["params"] < 0


def test_without_a_program_all_exact_rules_are_planned(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answer(capsys, "plan", model)
    sites = {row["rule"]: row["sites"] for row in found["rules"] if row["sites"]}
    assert sites["fold_bn"] == ["stem.0"]
    assert found["diagnostics"] == []
    assert main(["plan", model]) == 0
    assert "fold_divide" not in capsys.readouterr().out


def test_a_name_that_is_no_rule(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "plan", model, "fold_b", code=2)
    assert found["diagnostics"][0]["code"] == "U002"
    assert "`fold_bn`" in found["diagnostics"][0]["helps"][0]


def test_programs_by_name_hold_what_the_library_has() -> None:
    assert "fixpoint { fold_bn }" in program_named("fold_bn").text
    limited = program_named("prune_l1").text
    assert "budget drift(outputs) <= drift" in limited
    own_budget = program_named("low_rank_linear").text
    assert "drift" not in own_budget
    assert 'data calib = sample("train", 256)' in own_budget
    every = every_exact().text
    exact = [
        line.split()[2].partition("(")[0]
        for source in library_sources()
        for line in source.text.splitlines()
        if line.startswith("exact rule ")
    ]
    exact.remove("smooth_linear")  # reads what observers saw
    assert [name for name in exact if name not in every] == []


# -- show ------------------------------------------------------------------------------------------


def test_a_model_is_shown_as_rules_see_it(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["place"]: row for row in answer(capsys, "show", model)["ops"]}
    assert rows["stem.0"]["op"] == "conv2d"
    assert rows["stem.0"]["settings"] == "padding = 1"
    assert rows["stem.0"]["gives"] == "float32[2, 8, 8, 8]"
    assert rows["stem.0"]["source"].startswith("net.py:")
    (opaque,) = (row for row in rows.values() if row["why"])
    assert "bessel" in opaque["op"]


def test_a_part_of_a_model_is_shown(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["op"] for row in answer(capsys, "show", model, "stem.*")["ops"]] == [
        "conv2d",
        "batch_norm",
        "relu",
    ]
    assert answer(capsys, "show", model, "tail", code=2)["diagnostics"][0]["code"] == "U008"


# -- explain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("conv2d", ["op"]),
        ("svd", ["function"]),
        ("each", ["word"]),
        ("reshape", ["op", "function"]),
        ("fold_bn", ["exact rule"]),
        ("nothing_of_that", []),
    ],
)
def test_every_name_has_a_page(name: str, kinds: list[str]) -> None:
    assert [entry.kind for entry in entries(name)] == kinds


def test_the_reference_page_is_the_one_that_is_written() -> None:
    written = (Path(__file__).parent.parent / "docs" / "reference.md").read_text("utf-8")
    assert written == page(), "lissom explain --markdown > docs/reference.md"


def test_words_are_those_of_the_grammar() -> None:
    grammar = (Path(__file__).parent.parent / "grammar" / "lissom.lark").read_text("utf-8")
    terminals = set(re.findall(r"\b_?([A-Z][A-Z_]+)\b", grammar))
    assert [word for word in words() if word.upper() not in terminals] == []


# -- new -------------------------------------------------------------------------------------------


def test_a_new_pipeline_checks_is_formatted_and_runs(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "pipeline", "mine"]) == 0
    assert main(["fmt", "--check", "mine.lissom"]) == 0
    assert main(["plan", model, "mine.lissom"]) == 0
    assert main(["new", "pipeline", "mine"]) == 2


def test_progress_counts_places_and_rewrites() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)).eval()
    said: list[tuple[str, int, int]] = []
    program = program_of("pipeline p { stage s { once fold_bn } stage u { once drop_dropout } }")
    options = Options(functions=FUNCTIONS, progress=lambda *told: said.append(told))
    compile_model(model, program, (torch.randn(2, 3, 8, 8),), None, {}, options)
    assert [said[0], said[-1]] == [("s", 0, 2), ("u", 1, 2)]
    assert ("s: fold_bn, 1 tried, 0 rewritten", 0, 2) in said


# -- Python ----------------------------------------------------------------------------------------


def test_a_result_prints_in_a_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    program = "pipeline p { stage s { fixpoint { fold_bn } } }"
    result = lissom.compile(model, program, inputs=(torch.randn(2, 3, 8, 8),))
    assert repr(result).startswith("<lissom.Result: 1 rewrites, 120 -> 112 parameters, ")
    assert len(repr(result)) < 120


def test_dir_lists_what_there_is() -> None:
    assert dir(lissom) == sorted(lissom.__all__)


def test_an_error_comes_without_the_errors_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed() -> str:
        with pytest.raises(lissom.LissomError) as caught:
            lissom.compile(nn.Linear(3, 3).eval(), "no_such_file.lissom", inputs=(torch.ones(3),))
        return "".join(traceback.format_exception(caught.value))

    monkeypatch.delenv("LISSOM_TRACEBACK", raising=False)
    assert "During handling" not in printed()
    assert "direct cause" not in printed()
