"""`lissom dims`, and the other commands with a rule over dimensions, from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lissom
from lissom.__main__ import main
from tests.cli_models import as_json
from tests.dim_models import RESIDUAL, THIN, write_case

Case = tuple[str, str]
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path)


def printed(capsys: Capture, *arguments: str) -> str:
    """What a command prints, with runs of blanks as one."""
    capsys.readouterr()
    assert main([*arguments]) == 0
    return re.sub(" +", " ", capsys.readouterr().out)


# -- dims ------------------------------------------------------------------------------------------


def test_a_row_for_each_dimension(case: Case, capsys: Capture) -> None:
    text = printed(capsys, "dims", case[0])
    assert text.startswith("3 of 6 dimensions can be cut; 3,056 of 3,132 parameters")
    assert "(97.6 %)" in text
    assert "\none.a 12 2,640 220 one.a, two.a one.norm, two.norm one.b, two.b yes\n" in text
    assert re.search(r"^sums .* cumsum: cumsum mixes it \(residual.py:27\)$", text, re.M)
    assert "stem, one.b +1 " in text
    assert "stem, one.b, two.b " in printed(capsys, "dims", case[0], "-v")


def test_only_what_a_glob_touches(case: Case, capsys: Capture) -> None:
    code, found = as_json(capsys, "dims", case[0], "--at", "two.*")
    assert (code, [dim["name"] for dim in found["dims"]]) == (0, ["stem", "one.a"])
    assert found["totals"] == {"total": 6, "free": 3, "weights": 3132, "cuttable": 3056}
    _, found = as_json(capsys, "dims", case[0], "--at", "wide.weight")
    assert [dim["name"] for dim in found["dims"]] == ["stem", "wide"]


def test_a_glob_that_touches_nothing(case: Case, capsys: Capture) -> None:
    assert main(["dims", case[0], "--at", "wid"]) == 2
    text = capsys.readouterr().err
    assert "error[U008]: no dimension of the model stands at `wid`" in text
    assert "did you mean `wide`" in text


def test_reasons_are_counted_the_most_frequent_first(case: Case, capsys: Capture) -> None:
    lines = printed(capsys, "dims", case[0], "--blocked").splitlines()
    assert lines[1:] == [
        "2 x cumsum mixes it",
        " sums 6 at cumsum (residual.py:27)",
        " last 6 at cumsum_1 (residual.py:28)",
        "1 x the model returns it",
        " head 4 at output",
    ]
    _, found = as_json(capsys, "dims", case[0], "--blocked")
    assert [dim["name"] for dim in found["dims"]] == ["sums", "last", "head"]
    assert found["totals"]["free"] == 3
    (reason,) = found["dims"][0]["reasons"]
    assert reason["source"] == "residual.py:27"
    assert [reason["is_boundary"], found["dims"][2]["reasons"][0]["is_boundary"]] == [False, True]


def test_the_coupling_names_tied_weights(case: Case, capsys: Capture) -> None:
    text = printed(capsys, "dims", case[0], "--coupling", "--at", "one.a")
    assert "\nstem: 8 features, 368 parameters each\n made by stem.weight axis 0\n" in text
    assert " one.b.weight axis 0, tied with two.b.weight\n" in text
    assert " read by one.b.weight axis 1, tied with two.b.weight\n" in text
    assert " passes one.norm.running_mean axis 0\n" in text
    assert "stays: output: the model returns it" in printed(capsys, "dims", case[0], "--coupling")


def test_a_flowchart_of_layers_and_dimensions(case: Case, capsys: Capture) -> None:
    lines = printed(capsys, "dims", case[0], "--format", "mermaid").splitlines()
    assert lines[0] == "flowchart LR"
    nodes = dict(re.findall(r'^ (\w+)\(?\["(.+?)"\]', "\n".join(lines), re.M))
    arrows = [re.findall(r"(\w+) (-->|-\.-) (\w+)", line) for line in lines]
    edges = {(nodes[a], kind, nodes[b]) for found in arrows for a, kind, b in found}
    assert ("stem", "-->", "stem 8") in edges
    assert ("stem 8", "-->", "wide") in edges
    assert ("one.a 12", "-.-", "two.norm") in edges
    assert ("one.a 12", "-->", "two.b") in edges
    assert " classDef stays stroke-dasharray: 4 4" in lines
    assert sum(line.startswith(" class d") for line in lines) == 1


def test_names_cannot_break_out_of_the_flowchart(tmp_path: Path, capsys: Capture) -> None:
    model = tmp_path / "odd.py"
    odd = "a]; click x"
    model.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        f"        self.add_module({odd!r}, nn.Linear(3, 4))\n        self.b = nn.Linear(4, 2)\n"
        f"    def forward(self, x):\n        return self.b(getattr(self, {odd!r})(x))\n"
        "def build():\n    return Net().eval()\n"
        "def inputs():\n    return (torch.rand(2, 3),)\n"
    )
    text = printed(capsys, "dims", f"{model}:build", "--format", "mermaid")
    assert '["a]#59; click x"]' in text
    assert ";" not in text.replace("#59;", "")


def test_what_is_not_there_and_what_is_no_model(tmp_path: Path, capsys: Capture) -> None:
    assert main(["dims", str(tmp_path / "none.py")]) == 2
    assert "error[U002]" in capsys.readouterr().err
    model = tmp_path / "net.py"
    model.write_text(RESIDUAL.replace("return net.eval()", "return net.train()"))
    assert main(["dims", str(model)]) == 3
    model.write_text(
        "import torch\nfrom torch import nn\ndef build():\n    return nn.ReLU().eval()\n"
        "inputs = (torch.rand(2, 3),)\n"
    )
    assert "0 of 0 dimensions can be cut" in printed(capsys, "dims", str(model))
    assert main(["dims", str(model), "--at", "x"]) == 2
    text = printed(capsys, "why", str(model), "prune_l1")
    assert text.endswith("applies at 0 of 0 candidates: none\n")
    assert "the rule looks for" not in text


def test_help_and_misuse_load_no_torch() -> None:
    for arguments in (["dims", "--help"], ["dims"], ["dims", "x.py", "--nonsense"]):
        call = f"import sys, lissom.__main__ as m; m.main({arguments!r})"
        code = f"{call}; print('torch' in sys.modules)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout.endswith("False\n"), run.stderr


# -- why -------------------------------------------------------------------------------------------


def test_why_asks_the_dimensions_of_the_model(case: Case, capsys: Capture) -> None:
    assert main(["why", case[0], "prune_l1"]) == 0
    streams = capsys.readouterr()
    rows = [" ".join(line.split()) for line in streams.out.splitlines()]
    assert "anchor any dimension 6" in rows
    assert "guard not boundary(D) 6 5" in rows
    assert "guard sliceable(D) 5 3" in rows
    assert rows[-1] == "applies at 3 of 6 candidates: stem, one.a, wide"
    assert "head: it can be seen at output" in streams.err
    assert "sums (residual.py:27)" in streams.err
    assert "error" not in streams.err


def test_why_at_a_parameter(case: Case, capsys: Capture) -> None:
    _, found = as_json(capsys, "why", case[0], "prune_l1", "last")
    assert found["funnel"]["candidates"] == 2
    assert [near["site"] for near in found["funnel"]["nearest"]] == ["sums", "last"]
    _, found = as_json(capsys, "why", case[0], "prune_l1", "one.a.weight")
    assert found["funnel"]["sites"] == ["stem", "one.a"]
    assert main(["why", case[0], "prune_l1", "onee"]) == 2
    assert "error[U008]: no dimension" in capsys.readouterr().err


def test_why_takes_the_arguments_of_a_cutting_program(case: Case, capsys: Capture) -> None:
    arguments = ["why", case[0], "prune_l1", "--program", case[1]]
    _, found = as_json(capsys, *arguments, "--set", "multiple=8")
    assert found["funnel"]["sites"] == ["wide"]
    reasons = {near["site"]: near["reason"] for near in found["funnel"]["nearest"]}
    assert reasons["stem"] == "only 8 channels"


# -- plan, apply, verify, bisect -------------------------------------------------------------------


def test_a_planned_cut_is_done_exactly_and_verified(
    case: Case, tmp_path: Path, capsys: Capture
) -> None:
    plan, one, two = (str(tmp_path / name) for name in ("plan.json", "one", "two"))
    assert main(["plan", *case, "-o", plan, "-q"]) == 0
    assert main(["apply", case[0], "--plan", plan, "-o", one, "-q"]) == 0
    assert main(["apply", *case, "-o", two, "-q"]) == 0
    same = ("graph.json", "weights.safetensors", "manifest.json")
    assert all((Path(one) / n).read_bytes() == (Path(two) / n).read_bytes() for n in same)
    assert main(["verify", one, "-q"]) == 0
    cut = json.loads((Path(one) / "certificate.json").read_text())["applications"]
    assert [(a["site"], a["bindings"]["D"]) for a in cut] == [
        ("stem", "8 -> 4"),
        ("one.a", "12 -> 6"),
        ("wide", "16 -> 8"),
    ]
    assert all(verdict["holds"] for a in cut for verdict in a["verdicts"])


def test_a_tied_weight_is_cut_once_and_stays_tied(
    case: Case, tmp_path: Path, capsys: Capture
) -> None:
    code, found = as_json(capsys, "apply", *case, "-o", str(tmp_path / "o"))
    assert (code, [v["holds"] for v in found["reload"]]) == (0, [True])
    net = lissom.load(tmp_path / "o")
    assert net.one.b.weight is net.two.b.weight
    assert net.one.b.weight.shape == (4, 6, 3, 3)
    parameters = next(row for row in found["compared"] if row["name"] == "parameters")
    assert parameters["after"] == sum(p.numel() for p in net.parameters())
    torch.manual_seed(3)
    assert net(torch.rand(5, 3, 6, 6)).shape == (5, 4)


def test_a_cut_file_that_was_changed_is_found(case: Case, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "o"
    assert main(["apply", *case, "-o", str(out), "-q"]) == 0
    weights = bytearray((out / "weights.safetensors").read_bytes())
    weights[-3] ^= 1
    (out / "weights.safetensors").write_bytes(weights)
    assert main(["verify", str(out)]) == 1


def test_cuts_are_approximate_and_can_be_left_out(case: Case, capsys: Capture) -> None:
    _, found = as_json(capsys, "plan", *case, "--allow", "exact")
    assert found["plan"]["applications"] == []
    assert found["not_allowed"] == ["prune_l1(ratio = 50%)"]


def test_the_cut_that_breaks_a_promise_is_found(case: Case, capsys: Capture) -> None:
    Path(case[1]).write_text(THIN.rstrip()[:-1] + "  verify { params(model) >= 1100 }\n}\n")
    _, found = as_json(capsys, "plan", *case)
    left = found["before"]["params"] + found["plan"]["applications"][0]["params"]
    assert left > 1100 > left + found["plan"]["applications"][1]["params"]
    code, found = as_json(capsys, "bisect", *case)
    assert (code, found["number"], found["event"]["site"]) == (1, 2, "one.a")
    assert "does not hold" in found["why"]
