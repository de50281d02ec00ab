"""The channel benchmark: one model through it, what it calls wrong, and its tables."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Benchmarks import each other as scripts do: from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("channels_cut")


@pytest.fixture
def models(ours: ModuleType) -> ModuleType:
    return importlib.import_module("channels_models")


@pytest.fixture
def channels(ours: ModuleType) -> ModuleType:
    return importlib.import_module("channels")


def net() -> nn.Sequential:
    features = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3)
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def build() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return net().eval(), (torch.rand(1, 3, 8, 8),)


def row_of(ours: ModuleType, models: ModuleType, build: Any = build) -> dict[str, Any]:
    return models.guarded(ours.measured(models.alive(build)))


def changed(cut: Callable[..., fx.GraphModule], change: Callable[[nn.Module], None]) -> Any:
    def other(*given: Any) -> fx.GraphModule:
        module = cut(*given)
        change(module)
        return module

    return other


def one_number(module: nn.Module) -> None:
    next(module.parameters()).data.view(-1)[0] += 1


def one_more_output(module: nn.Module) -> None:
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    last.weight = nn.Parameter(torch.cat([last.weight, last.weight[:1]]))
    last.bias = nn.Parameter(torch.cat([last.bias, last.bias[:1]]))


# -- one model -------------------------------------------------------------------------------------


def test_half_of_a_small_net_is_cut_and_equal(ours: ModuleType, models: ModuleType) -> None:
    row = row_of(ours, models)
    assert ours.outcome(row) == "equal", row
    assert (row["free"], row["stage"], row["stored"], row["batches"]) == (2, "done", "equal", 2)
    assert row["before"] == (3 * 9 + 1 + 2) * 8 + (8 * 9 + 1) * 6 + 7 * 4
    assert row["after"] == (3 * 9 + 1 + 2) * 4 + (4 * 9 + 1) * 3 + 4 * 4
    assert row["share"] == 1.0
    assert row["diff"] <= 1e-5 < row["moved"]
    assert row["blockers"] == ["4 x the model returns it (output)"]


@pytest.mark.parametrize("change", [one_number, one_more_output])
def test_a_cut_that_computes_something_else_is_wrong(
    ours: ModuleType,
    models: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[nn.Module], None],
) -> None:
    monkeypatch.setattr(ours, "cut", changed(ours.cut, change))
    assert ours.outcome(row_of(ours, models)) == "WRONG"


def test_a_cut_that_is_equal_in_float64_only_is_equal(
    ours: ModuleType, models: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded(module: nn.Module) -> None:
        for each in module.parameters():
            each.data += 1e-3 if each.dtype == torch.float32 else 0

    monkeypatch.setattr(ours, "cut", changed(ours.cut, rounded))
    row = row_of(ours, models)
    assert row["diff"] > ours.SINGLE
    assert row["diff64"] < ours.DOUBLE
    assert ours.outcome(row) == "equal"


def test_a_cut_that_does_not_run_has_failed(
    ours: ModuleType, models: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(module: nn.Module) -> None:
        last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight = nn.Parameter(last.weight[:, 1:])

    monkeypatch.setattr(ours, "cut", changed(ours.cut, narrow))
    row = row_of(ours, models)
    assert (ours.outcome(row), row["stage"]) == ("failed", "run")
    assert row["error"].startswith("RuntimeError")


def test_what_cannot_be_captured_or_cut_is_told_apart(ours: ModuleType, models: ModuleType) -> None:
    training = row_of(ours, models, lambda: (net(), (torch.rand(1, 3, 8, 8),)))
    assert ours.outcome(training) == "not captured"
    assert training["refused"] == ["M001"]
    single = row_of(ours, models, lambda: (nn.Linear(4, 3).eval(), (torch.rand(2, 4),)))
    assert ours.outcome(single) == "nothing to cut"
    assert single["share"] == 0.0


def test_an_output_that_does_not_move_shows_nothing(ours: ModuleType) -> None:
    row = {"how": "trace", "diff": 0.0, "kept": True, "stage": "done", "moved": 0.0}
    assert ours.outcome(row) == "moves nothing"
    assert ours.outcome(row | {"moved": 0.5}) == "equal"
    assert ours.outcome(row | {"moved": 0.5, "stored": "DIFFERS"}) == "WRONG"
    assert ours.outcome(row | {"moved": 0.5, "diff": 1e-3, "diff64": "no kernel"}) == "WRONG"
    assert ours.outcome(row | {"moved": 0.5, "diff": float("nan")}) == "WRONG"


def test_weights_that_would_hide_a_cut_are_drawn(models: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    trained = model[0].weight.clone()
    nn.init.zeros_(model[2].weight)
    models.enliven(model)
    assert torch.equal(model[0].weight, trained)
    for drawn in (model[2].weight, model[1].weight, model[1].running_mean, model[1].running_var):
        assert len(drawn.unique()) == drawn.numel()


# -- processes -------------------------------------------------------------------------------------


def test_a_process_that_dies_or_hangs_loses_no_other(models: ModuleType) -> None:
    def hang(row: dict[str, Any]) -> None:
        row["stage"] = "hanging"
        time.sleep(60)

    tasks = {
        ("dies",): lambda row: os._exit(3),
        ("hangs",): hang,
        ("raises",): lambda row: 1 / 0,
        ("works",): lambda row: row.update(stage="done"),
    }
    rows = dict(models.in_processes(tasks.items(), 2, 1))
    assert rows[("dies",)]["error"].endswith("ended with 3")
    assert rows[("hangs",)]["stage"] == "hanging"
    assert rows[("hangs",)]["error"].startswith("TimeLimit")
    assert rows[("raises",)]["error"].startswith("ZeroDivisionError")
    assert rows[("works",)]["stage"] == "done"
    assert rows[("works",)]["peak_mb"] > 0


# -- the tables ------------------------------------------------------------------------------------


def key(name: str, tool: str) -> dict[str, str]:
    return {"set": "torchvision", "kind": "classification", "name": name, "tool": tool}


def test_the_summary_counts_every_outcome_once(channels: ModuleType) -> None:
    seen = {"how": "trace", "stage": "done", "share": 0.5, "before": 1000, "free": 1, "classes": 2}
    judged = seen | {"after": 500, "kept": True, "diff": 1e-7, "moved": 0.4}
    rows = [
        key("a", "lissom") | judged,
        key("b", "lissom") | judged | {"diff": 1.0, "diff64": 1.0},
        key("c", "lissom") | seen | {"error": "LissomError: no", "refused": ["R010"]},
        key("d", "lissom") | seen | {"error": "RuntimeError: no"},
        key("e", "lissom") | {"stage": "capture", "error": "LissomError: no", "refused": ["M004"]},
        key("f", "lissom") | seen,
        key("a", "peer") | {"stage": "done", "before": 9, "after": 5, "kept": True, "seconds": 1},
        key("b", "peer") | {"stage": "done", "before": 9, "after": 5, "kept": False, "seconds": 1},
        key("c", "peer") | {"stage": "prune", "error": "KeyError: x"},
    ]
    text = channels.markdown(rows)
    line = next(each for each in text.splitlines() if each.startswith("| torchvision, class"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == ["6", "5", "1", "1", "1", "1", "1", "5", "0.50", "1", "2"]
    assert "| a | trace | equal | 1 of 2 |" in text
    assert "- b: WRONG (done)" in text
    assert "- c, peer (prune): KeyError: x" in text
    assert "failed: another output shape" in text
    assert "failed: KeyError" in text


def test_an_earlier_run_is_printed_and_a_wrong_model_fails_it(
    channels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"how": "trace", "stage": "done", "kept": False, "diff": 1e-7, "moved": 0.4}
    file = tmp_path / "rows.jsonl"
    for row, code in ((wrong, 1), (wrong | {"kept": True}, 0)):
        file.write_text(json.dumps(key("a", "lissom") | row) + "\n")
        monkeypatch.setattr("sys.argv", ["channels.py", "--table", str(file)])
        assert channels.main() == code
