"""The commands that run a model: why, plan, apply, verify; from the command line to the folder."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lissom
from lissom.__main__ import main
from lissom.jobs.compiling import EXACT, Request
from tests.cli_models import FAILING, MODEL, PROGRAM, SILENT, as_json, write_case

Case = tuple[str, str]
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path)


# -- plan ------------------------------------------------------------------------------------------


def test_exact_rules_alone_are_planned_and_the_others_are_counted(
    case: Case, capsys: Capture
) -> None:
    assert main(["plan", *case, "--allow", "exact"]) == 0
    text = capsys.readouterr().out
    assert "fold_bn" in text
    assert "2 rewrites: " in text
    assert "1 approximate rule left out by --allow exact (low_rank_linear(" in text


def test_rules_of_a_program_are_planned_with_their_savings(case: Case, capsys: Capture) -> None:
    """As in Python, whatever their kind."""
    code, found = as_json(capsys, "plan", *case)
    options = inspect.signature(lissom.compile).parameters["allow"].default
    assert {*EXACT, *Request("").allow} == set(options)
    rows = {row["rule"].partition("(")[0]: row for row in found["rules"]}
    low = rows["low_rank_linear"]
    assert (code, found["not_allowed"]) == (0, [])
    assert (low["kind"], low["sites"]) == ("approx", ["head"])
    assert low["params"] == 8 + 4 - 8 * 4
    changes = sum(row["params"] for row in rows.values())
    assert changes == found["after"]["params"] - found["before"]["params"]


def test_reasons_of_guards_are_news_and_other_ops_are_not(case: Case, capsys: Capture) -> None:
    program = Path(case[1])
    program.write_text(PROGRAM.replace("least = 4", "least = 30"))
    assert main(["plan", *case]) == 0
    text = capsys.readouterr().out
    assert "1 x not: 4x8 is too small" in text
    assert "expected, found" not in text
    assert main(["plan", *case, "-v"]) == 0
    assert "1 x no match: batch_norm expected, found relu" in capsys.readouterr().out


def test_the_exit_code_can_tell_changes(case: Case) -> None:
    assert main(["plan", *case, "-q", "--exit-code"]) == 10
    Path(case[1]).write_text(SILENT)
    assert main(["plan", *case, "-q", "--exit-code"]) == 0


def test_a_rule_that_changes_nothing_is_a_warning_or_an_error(case: Case, capsys: Capture) -> None:
    Path(case[1]).write_text(SILENT)
    assert main(["plan", *case]) == 0
    assert "warning[W702]: drop_double_neg changed none" in capsys.readouterr().err
    assert main(["plan", *case, "--strict"]) == 2
    assert "error[W702]" in capsys.readouterr().err


def test_quiet_says_nothing_but_errors(case: Case, capsys: Capture) -> None:
    Path(case[1]).write_text(SILENT)
    assert main(["plan", *case, "-q"]) == 0
    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("", "")


def test_settings_reach_the_pipeline(case: Case, capsys: Capture) -> None:
    arguments = ["plan", *case]
    _, found = as_json(capsys, *arguments, "--set", "energy=98%")
    assert "low_rank_linear(energy = 98%, least = 4)" in [row["rule"] for row in found["rules"]]


@pytest.mark.parametrize("setting", ["energi=1", "energy", "energy=f(2)"])
def test_settings_that_mean_nothing(setting: str, case: Case, capsys: Capture) -> None:
    assert main(["plan", *case, "--set", setting]) == 2
    assert "error[U004]" in capsys.readouterr().err


def test_a_claim_that_does_not_hold_fails(case: Case, tmp_path: Path, capsys: Capture) -> None:
    Path(case[1]).write_text(FAILING)
    assert main(["plan", *case]) == 1
    assert "FAILED  params(model) <= 10" in capsys.readouterr().out
    assert main(["apply", *case, "-o", str(tmp_path / "out")]) == 1
    assert "error[V104]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_fails_is_exit_code_three(tmp_path: Path, capsys: Capture) -> None:
    case = write_case(tmp_path)
    Path(tmp_path / "net.py").write_text(MODEL.replace("return net.eval()", "return net.train()"))
    assert main(["plan", *case]) == 3
    assert "error[M001]" in capsys.readouterr().err
    Path(tmp_path / "net.py").write_text("1 / 0\n")
    code, found = as_json(capsys, "plan", *case)
    assert (code, [d["code"] for d in found["diagnostics"]]) == (3, ["M020"])


# -- apply -----------------------------------------------------------------------------------------


def test_apply_writes_what_it_verified(case: Case, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = ["apply", *case, "-o", str(out), "--measure", "test"]
    code, found = as_json(capsys, *arguments)
    rows = {row["name"]: row for row in found["compared"]}
    assert code == 0
    assert rows["parameters"]["after"] < rows["parameters"]["before"]
    written = sum((out / name).stat().st_size for name in ("graph.json", "weights.safetensors"))
    assert rows["file bytes"]["after"] == written + (out / "manifest.json").stat().st_size
    assert rows["latency"]["how"].endswith("1 thread, torch eager, batch 4")
    assert rows["share"]["how"] == "test, 12 samples"
    assert [verdict["holds"] for verdict in found["reload"]] == [True]
    x = torch.rand(5, 3, 6, 6)
    assert lissom.load(out)(x).shape == (5, 4)


def test_a_plan_is_done_exactly(case: Case, tmp_path: Path, capsys: Capture) -> None:
    plan, one, two = (str(tmp_path / name) for name in ("plan.json", "one", "two"))
    assert main(["plan", *case, "--set", "energy=98%", "-o", plan]) == 0
    # The program may be gone or changed: the plan holds its text.
    Path(case[1]).write_text("pipeline other {\n}\n")
    for folder in (one, two):
        assert main(["apply", case[0], "--plan", plan, "-o", folder, "-q"]) == 0
    names = sorted(path.name for path in Path(one).iterdir())
    assert all((Path(one) / n).read_bytes() == (Path(two) / n).read_bytes() for n in names)
    rules = [a["rule"] for a in json.loads((Path(one) / "plan.json").read_text())["applications"]]
    assert "low_rank_linear(energy = 98%, least = 4)" in rules


def test_a_plan_for_other_weights_is_refused(case: Case, tmp_path: Path, capsys: Capture) -> None:
    plan, out = str(tmp_path / "plan.json"), tmp_path / "out"
    assert main(["plan", *case, "-o", plan]) == 0
    (tmp_path / "net.py").write_text(MODEL.replace("manual_seed(0)", "manual_seed(5)"))
    assert main(["apply", case[0], "--plan", plan, "-o", str(out)]) == 2
    assert "error[P101]" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: "not json",
        lambda plan: "[]",
        lambda plan: json.dumps(plan | {"format": 99}),
        lambda plan: json.dumps(plan | {"result": 3}),
        lambda plan: json.dumps({k: v for k, v in plan.items() if k != "request"}),
        lambda plan: json.dumps(plan | {"request": plan["request"] | {"threads": 10**9}}),
        lambda plan: json.dumps(plan | {"applications": [{"rule": 1}]}),
    ],
)
def test_damaged_plans_are_refused(
    damage: Any, case: Case, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", *case, "-o", str(path), "-q"]) == 0
    path.write_text(damage(json.loads(path.read_text())))
    assert main(["apply", case[0], "--plan", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "error[U006]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("planned", "asked", "said"), [("exact", "approx", "without"), ("approx", "exact", "with")]
)
def test_a_plan_keeps_its_kinds(
    planned: str, asked: str, said: str, case: Case, tmp_path: Path, capsys: Capture
) -> None:
    plan = str(tmp_path / "plan.json")
    assert main(["plan", *case, "--allow", planned, "-o", plan]) == 0
    arguments = ["apply", case[0], "--plan", plan, "-o", str(tmp_path / "out")]
    assert main([*arguments, "--allow", asked]) == 2
    assert f"the plan was made {said} approximate rules" in capsys.readouterr().err
    assert main(arguments) == 0


@pytest.mark.parametrize(
    "extra", [[], ["p.lissom", "--plan", "x"], ["--plan", "x", "--set", "a=1"]]
)
def test_apply_wants_a_program_or_a_plan(extra: list[str], capsys: Capture) -> None:
    assert main(["apply", "net.py", *extra, "-o", "out"]) == 2
    assert "error[U001]" in capsys.readouterr().err


def test_apply_keeps_folders_of_others(case: Case, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert main(["apply", *case, "-o", str(out)]) == 1
    assert "error[A003]" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("split", "code"), [("tset", "D001"), ("test", "D002")])
def test_measuring_needs_data(
    split: str, code: str, case: Case, tmp_path: Path, capsys: Capture
) -> None:
    if code == "D002":
        (tmp_path / "net.py").write_text(MODEL.replace("def data(", "def no_data("))
    Path(case[1]).write_text("pipeline p { stage s { once fold_bn } }\n")
    arguments = ["apply", *case, "-o", str(tmp_path / "out"), "--measure", split]
    assert main(arguments) == 2
    assert f"error[{code}]" in capsys.readouterr().err


def test_inputs_may_be_given_by_name(case: Case, tmp_path: Path, capsys: Capture) -> None:
    text = MODEL.replace("return (torch.rand(2, 3, 6, 6),)", 'return {"x": torch.rand(2, 3, 6, 6)}')
    (tmp_path / "net.py").write_text(text)
    out = str(tmp_path / "out")
    code, found = as_json(capsys, "apply", *case, "-o", out)
    assert (code, len(found["reload"])) == (0, 1)
    assert main(["verify", out, "-q"]) == 0


# -- verify ----------------------------------------------------------------------------------------


@pytest.fixture
def written(case: Case, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    assert main(["apply", *case, "-o", str(out), "-q"]) == 0
    return out


def test_verify_of_a_whole_artifact(written: Path, capsys: Capture) -> None:
    code, found = as_json(capsys, "verify", str(written))
    assert code == 0
    assert len(found["verdicts"]) == 4
    assert all(verdict["holds"] for verdict in found["verdicts"])


def test_verify_finds_damage(written: Path, capsys: Capture) -> None:
    weights = written / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["verify", str(written)]) == 1
    assert "error[A021]" in capsys.readouterr().err


def test_verify_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    assert main(["verify", str(tmp_path / "nothing")]) == 1
    assert "error[A0" in capsys.readouterr().err


# -- why -------------------------------------------------------------------------------------------


def test_why_shows_the_funnel_and_the_nearest_miss(case: Case, capsys: Capture) -> None:
    assert main(["why", case[0], "low_rank_linear"]) == 0
    streams = capsys.readouterr()
    assert "min(O, I) >= least" in streams.out
    assert "applies at 0 of 1 candidates" in streams.out
    assert "head: 4x8 is too small" in streams.err
    assert "^" in streams.err


def test_why_takes_the_arguments_of_the_program(case: Case, capsys: Capture) -> None:
    arguments = ["why", case[0], "low_rank_linear", "--program", case[1]]
    _, found = as_json(capsys, *arguments)
    assert found["funnel"]["sites"] == ["head"]
    assert found["funnel"]["rule"] == "low_rank_linear(energy = 99%, least = 4)"
    _, found = as_json(capsys, *arguments, "--set", "least=9")
    assert found["funnel"]["sites"] == []


def test_why_at_a_place(case: Case, capsys: Capture) -> None:
    _, found = as_json(capsys, "why", case[0], "fold_bn", "bn")
    assert found["funnel"]["sites"] == ["conv"]
    assert main(["why", case[0], "fold_bn", "bnn"]) == 2
    assert "error[U008]" in capsys.readouterr().err


def test_why_of_a_rule_that_is_not_there(case: Case, capsys: Capture) -> None:
    assert main(["why", case[0], "fold_bnn"]) == 2
    assert "did you mean `fold_bn`" in capsys.readouterr().err


def test_why_without_a_candidate_says_what_may_be_one(
    case: Case, capsys: Capture, tmp_path: Path
) -> None:
    text = MODEL.replace("padding=1, bias=False", 'padding=1, padding_mode="reflect"')
    model = tmp_path / "reflected.py"
    model.write_text(text)
    assert main(["why", f"{model}:build", "fold_bn"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"the rule looks for +in the graph", shown)
    assert re.search(r"^batch_norm +1$", shown, re.M)
    assert re.search(r"^may be .*conv2d.*: conv \(.*\): .*padding_mode is 'reflect'", shown, re.M)


# -- the static checker ----------------------------------------------------------------------------

MISTAKEN = """\
exact rule wrong {
  match { y = linear(x) as l }
  perturb { l.weight := 0 * l.weight }
  rewrite { y = l(x, weight = l.wieght) }
}
"""


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_what_check_refuses_is_refused_in_the_same_words(
    command: str, case: Case, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / "mistaken.lissom"
    path.write_text(MISTAKEN)
    code, checked = as_json(capsys, "check", str(path))
    folder = str(tmp_path / "out")
    again, refused = as_json(capsys, command, case[0], str(path), "-o", folder)
    assert again == code == 2
    assert refused["diagnostics"] == checked["diagnostics"] != []
    assert not Path(folder).exists()


def test_warnings_of_check_are_passed_on(case: Case, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "soft.lissom"
    path.write_text(
        "approx rule soft { match { y = relu(x) } rewrite { y = silu(x) }"
        " ensure { error(y) <= 100% } }"
    )
    told = as_json(capsys, "check", str(path))[1]["diagnostics"]
    code, planned = as_json(capsys, "plan", case[0], str(path))
    assert code == 0
    assert [found["code"] for found in told] == ["X003"]
    assert told[0] in planned["diagnostics"]
