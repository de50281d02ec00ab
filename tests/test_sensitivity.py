"""Sensitivity: one rule at one place at a time, in one process, in several, on a dask cluster."""

from __future__ import annotations

import csv
import io
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.__main__ import main
from lissom.jobs.sensitivity import Question, measure_sensitivity
from lissom.rewrite.journal import Applied
from tests.cli_models import as_json
from tests.dim_models import write_case

from .support import library

VALUES = ["10%", "30%", "50%"]


@pytest.fixture
def case(tmp_path: Path) -> tuple[str, str]:
    model, rules = write_case(tmp_path)
    with Path(model.partition(":")[0]).open("a") as file:
        file.write(
            "\ndef share(model, batches):\n"
            "    return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in batches)\n"
            'metrics = {"share": share}\n'
        )
    return model, rules


def drifts(model: str, rule: str, program: str, ratio: str) -> dict[str, float]:
    """The same by `compile`: a program for each place, compared with the original by hand."""
    from lissom.model_file import load_model

    file, found = load_model(model), {}
    for site in ("stem", "one.a", "wide"):
        step = f'once {rule}(ratio = {ratio}) at "{site}"'
        stage = f"budget drift(outputs) <= 1e9; stage s {{ {step} }}"
        text = f"{library('prune')} pipeline p {{ {stage} }}"
        result = lissom.compile(file.model, text, inputs=file.inputs)
        with torch.no_grad():
            old, new = file.model(*file.inputs), result.model(*file.inputs)
        found[site] = float((new - old).norm() / old.norm()) if result.applied else 0.0
    return found


@pytest.mark.usefixtures("one_thread")
def test_each_cell_is_the_rule_at_one_place_alone(case: tuple[str, str]) -> None:
    found = measure_sensitivity(Question(case[0], "prune_l1"), "ratio", VALUES)
    assert [column.value for column in found.columns] == VALUES
    for column in found.columns:
        cells = {effect.site: effect for effect in column.effects}
        expected = drifts(case[0], "prune_l1", case[1], column.value)
        assert {site: cells[site].drift for site in expected} == pytest.approx(expected, abs=1e-6)
        assert cells["head"].reason == "it can be seen at output"
    stem = [column.effects[0] for column in found.columns]
    assert stem[0].reason == "rounding up to a multiple of 1 keeps all 8"
    assert stem[2].params == 4 * 368
    assert stem[2].macs > stem[1].macs > 0
    assert found.processes == 1


@pytest.mark.usefixtures("one_thread")
def test_a_metric_is_measured_on_its_split(case: tuple[str, str]) -> None:
    from lissom.model_file import load_model

    question = Question(case[0], "prune_l1", metric="share", split="test")
    (column,) = measure_sensitivity(question, "ratio", ["50%"]).columns
    wide = next(effect for effect in column.effects if effect.site == "wide")
    file = load_model(case[0])
    step = 'once prune_l1(ratio = 50%) at "wide"'
    text = f"{library('prune')} pipeline p {{ budget drift(outputs) <= 1e9; stage s {{ {step} }} }}"
    small = lissom.compile(file.model, text, inputs=file.inputs).model
    assert file.data is not None
    share, batches = file.metrics["share"], file.data("test")
    assert wide.drop == pytest.approx(share(file.model, batches) - share(small, batches))


def test_rules_over_ops_are_measured_too(tmp_path: Path) -> None:
    """The model is whole again for every place; no budget of the rule refuses one."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    layers = [nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU()]\n"
        "    return nn.Sequential(*layers, nn.Linear(40, 40)).eval()\n"
        "def inputs():\n    return (torch.ones(3, 40),)\n"
    )
    question = Question(str(tmp_path / "net.py"), "low_rank_linear", settings=("budget=1%",))
    columns = measure_sensitivity(question, "rank", ["4", "16"]).columns
    for column, rank in zip(columns, (4, 16), strict=True):
        assert [effect.site for effect in column.effects] == ["0", "2", "4"]
        assert {effect.params for effect in column.effects} == {1600 - 80 * rank}
    for low, high in zip(columns[0].effects, columns[1].effects, strict=True):
        assert low.drift > high.drift > 0


def test_the_order_of_each_is_that_of_the_table() -> None:
    """What moves the outputs least is cut first; before, all ranked alike."""
    torch.manual_seed(0)
    layers = [nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(12, 4)).eval()
    with torch.no_grad():
        for layer, loud in ((model[0], 3.0), (model[2], 1e-3), (model[4], 1.0)):
            layer.weight[:3] = loud * torch.rand(3, 12)
    rule = library("prune").replace("l1_over(writers(D))", "-first(D)")
    step = "each prune_l1(ratio = 25%) order by sensitivity"
    text = f"{rule} pipeline p {{ budget drift(outputs) <= 1e9; stage s {{ {step} }} }}"
    result = lissom.compile(model, text, inputs=(torch.rand(16, 12),))
    order = [event.site for event in result.journal.of(Applied)]
    assert order[0] == "2"
    assert set(order) == {"0", "2", "4"}


# -- several processes -----------------------------------------------------------------------------


def test_two_processes_find_what_one_finds(case: tuple[str, str]) -> None:
    question = Question(case[0], "prune_l1", case[1])
    alone, together = (measure_sensitivity(question, "ratio", VALUES, jobs=jobs) for jobs in (1, 2))
    assert (alone.processes, together.processes) == (1, 2)
    for one, two in zip(alone.columns, together.columns, strict=True):
        assert one.effects == two.effects


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_finds_what_one_process_finds(case: tuple[str, str]) -> None:
    """Both workers are processes of their own, reached by the address of their scheduler."""
    distributed = pytest.importorskip("distributed")
    question = Question(case[0], "prune_l1", case[1])
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    with distributed.LocalCluster(**settings, dashboard_address=None) as cluster:
        found = measure_sensitivity(question, "ratio", VALUES, cluster=cluster.scheduler_address)
        workers = {worker.pid for worker in cluster.workers.values()}
    assert found.columns == measure_sensitivity(question, "ratio", VALUES).columns
    assert len(workers - {os.getpid()}) == 2
    assert found.processes == 2


# -- the command -----------------------------------------------------------------------------------

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("one_thread")
def test_the_command_prints_a_row_for_each_place(case: tuple[str, str], capsys: Capture) -> None:
    arguments = ["sensitivity", case[0], "prune_l1", "--vary", "ratio=10%, 50%"]
    assert main(arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:4] == ["drift", "of", "the", "outputs,"]
    assert [line[0] for line in lines[2:5]] == ["stem", "one.a", "wide"]
    assert lines[2][1] == "-"
    assert lines[2][-1] == "1,472"
    assert lines[-1] == ["1", "x", "not:", "it", "can", "be", "seen", "at", "output"]


@pytest.mark.usefixtures("one_thread")
def test_all_formats_hold_the_same_numbers(case: tuple[str, str], capsys: Capture) -> None:
    arguments = ["sensitivity", case[0], "prune_l1", "--vary", "ratio=30%,50%"]
    code, found = as_json(capsys, *arguments)
    assert (code, found["processes"]) == (0, 1)
    cells = [e for e in found["effects"] if not e["reason"]]
    assert main([*arguments, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["drift"]) for row in lines] == [e["drift"] for e in found["effects"]]
    assert main([*arguments, "--format", "svg"]) == 0
    picture = ET.fromstring(capsys.readouterr().out)
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {f"{100 * e['drift']:.2f} %" for e in cells} <= set(texts)
    darkest = max(cells, key=lambda e: e["drift"])
    boxes = [b.get("fill") for b in picture.iter("{http://www.w3.org/2000/svg}rect")]
    assert boxes.count("#a50f15") == 1
    assert f"{100 * darkest['drift']:.2f} %" in texts


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--vary", "share=1%,2%"), "U004"),
        (("--metric", "recall"), "D004"),
        (("--metric", "share", "--on", "nowhere"), "D001"),
    ],
)
def test_mistakes_are_named(
    more: tuple[str, ...], code: str, case: tuple[str, str], capsys: Capture
) -> None:
    assert main(["sensitivity", case[0], "prune_l1", *more]) == 2
    assert f"error[{code}]" in capsys.readouterr().err
