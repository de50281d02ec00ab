"""The importance benchmark: a tiny model through it, its rows, its tables and its figure."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent

TINY = """
import torch
from torch import nn

def build(seed=0):
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 10, 3), NORM(10), nn.ReLU(), nn.Conv2d(10, 8, 3), NORM(8), nn.ReLU()
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()

def data(split):
    generator = torch.Generator().manual_seed(len(split))
    x = torch.randn(60, 1, 8, 8, generator=generator)
    return [(x, torch.arange(60) % 3)]

def inputs():
    return (data("valid")[0][0][:2],)

def accuracy(model, batches):
    right = [(model(x).argmax(1) == y).float().mean() for x, y in batches]
    return float(torch.stack(right).mean())

metrics = {"accuracy": accuracy}
"""


def model_file(folder: Path, norm: str = "nn.BatchNorm2d") -> str:
    path = folder / "tiny" / "model.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(TINY.replace("NORM", norm))
    return str(path)


@pytest.fixture
def importance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Benchmarks import each other as scripts do: from their own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("importance")


@pytest.fixture
def show(importance: ModuleType) -> ModuleType:
    return importlib.import_module("importance_show")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- running ---------------------------------------------------------------------------------------


def test_a_tiny_model_goes_through_it(
    importance: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "rows.jsonl", tmp_path / "figures" / "figure.svg"
    words = ["--models", model_file(tmp_path), "--ratios", "0", "30", "60", "--seeds", "0", "1"]
    words += ["--scores", "l1", "random", "--draws", "2", "--test-at", "60", "--out", str(out)]
    words += ["--table", "--plot", str(figure)]
    assert importance.main(words) == 0
    first, rows = capsys.readouterr().out, read(out)
    assert len(rows) == 2 * (1 + 2 * (1 + 2))
    assert {row["network"] for row in rows} == {0, 1}
    assert all(("test" in row) == (row["ratio"] in (0, 60)) for row in rows)
    lines = [line for line in first.splitlines() if line.startswith("| ")]
    table = ["removed", ":--", "0 %", "30 %", "60 %", "score", ":--", "l1", "random"]
    assert [line.split("|")[1].strip() for line in lines] == table * 2
    drawn = figure.read_text()
    for name in ("tiny-l1", "tiny-random", "tiny_settled-l1", "tiny_settled-random"):
        assert drawn.count(f'id="line-{name}"') == 1
    assert importance.main(words) == 0
    assert capsys.readouterr().out == first
    assert read(out) == rows
    assert figure.read_text() == drawn


def test_all_scores_cut_as_much(importance: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--models", model_file(tmp_path), "--ratios", "40", "--seeds", "0", "--draws", "1"]
    assert importance.main([*words, "--out", str(out)]) == 0
    whole, *cut = read(out)
    assert [row["score"] for row in cut] == [*importance.SCORES, "random"]
    assert whole["params"] == 10 * (10 + 2) + 8 * (91 + 2) + 3 * 9
    assert {row["params"] for row in cut} == {6 * (10 + 2) + 5 * (55 + 2) + 3 * 6}


def test_norm_scales_of_no_norm_are_left_out(importance: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    words = ["--models", model_file(tmp_path, "nn.Identity"), "--ratios", "40", "--seeds", "0"]
    assert importance.main([*words, "--scores", "scale", "l1", "--out", str(out)]) == 0
    assert [row["score"] for row in read(out)] == ["whole", "l1"]
    assert not any("valid_settled" in row for row in read(out))


def test_settled_norms_have_the_statistics_of_the_calibration_images(
    importance: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).eval()
    x = 3 + 2 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(importance, "CALIBRATION", 30)
    settled = importance._settled(net, [(x[:20], None), (x[20:40], None), (x[40:], None)])
    means = torch.stack([x[:20].mean(0), x[20:30].mean(0)])
    assert torch.allclose(settled[0].running_mean, means.mean(0))
    assert torch.allclose(settled[0].weight, net[0].weight)
    assert not any(module.training for module in settled.modules())
    assert net[0].running_mean.tolist() == [0, 0]


def test_a_cut_that_was_taken_back_is_no_measurement(
    importance: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importance.program
    monkeypatch.setattr(importance, "program", lambda *a: program(*a).replace("1000000%", "0%"))
    words = ["--models", model_file(tmp_path), "--ratios", "40", "--seeds", "0"]
    with pytest.raises(ValueError, match=r"40 % of tiny: .*drift"):
        importance.main([*words, "--scores", "l1"])


def test_the_rule_differs_from_the_librarys_in_its_score_only(importance: ModuleType) -> None:
    library = (ROOT / "passes" / "prune.lissom").read_text()
    text = importance.program("l2_over(readers(D))", 30)
    rule = text[: text.index("pipeline")].strip()
    assert rule.count("l2_over(readers(D))") == 1
    plain = rule.replace("l2_over(readers(D))", importance.PLAIN).replace("prune", "prune_l1")
    assert plain in library


@pytest.mark.parametrize("words", [["--scores", "l3"], ["--ratios", "100"], ["--ratios", "-1"]])
def test_what_cannot_be_measured_is_refused(importance: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        importance.main(words)
    assert caught.value.code == 2


# -- tables and figure -----------------------------------------------------------------------------


def row(score: str, ratio: int, valid: float, network: int = 0, draw: int = 0) -> dict[str, Any]:
    place = {"model": "m", "network": network, "score": score, "draw": draw, "ratio": ratio}
    measured = {"params": 1000 - ratio, "images": 50, "valid": valid, "test": valid - 0.01}
    return place | measured | {"cpu_s": 2.0}


def test_cells_are_means_over_networks_and_random_has_its_range(show: ModuleType) -> None:
    rows = [row("whole", 0, 0.9, network) for network in (0, 1)]
    rows += [row("l1", 50, 0.8), row("l1", 50, 0.6, 1)]
    rows += [row("random", 50, 0.1 * k, k // 2, k % 2) for k in range(4)]
    text = show.markdown(rows)
    assert "**m, mean of 2 networks**: 50 validation images" in text
    assert "| 0 % | 1,000 | 90.0 | 90.0 |" in text
    assert "| 50 % | 950 | 70.0 | 15.0 (0.0 to 30.0) |" in text
    assert "uncut 89.0" in text
    assert "| l1 | 69.0 (59.0 to 79.0) | 2.00 s |" in text


def test_settled_networks_have_a_table_of_their_own(show: ModuleType) -> None:
    rows = [row("whole", 0, 0.9), row("l1", 50, 0.4)]
    rows = [each | {"valid_settled": 0.7, "test_settled": 0.6} for each in rows]
    kept, settled = show.markdown(rows).split("norm statistics made anew")
    assert "| 50 % | 950 | 40.0 |" in kept
    assert "| 50 % | 950 | 70.0 |" in settled
    assert "| l1 | 60.0 | 2.00 s |" in settled


def test_the_figure_has_a_line_for_each_score_and_is_small(
    importance: ModuleType, show: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    scores = [*importance.SCORES, "random"]
    assert set(show.LOOKS) == set(importance.SCORES)
    ratios = range(10, 90, 10)
    one = [row(s, r, 0.9 - r / 100) for s in scores for r in ratios] + [row("whole", 0, 0.9)]
    rows = one + [each | {"model": "other"} for each in one]
    show.plot(rows, tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    for name in scores:
        assert drawn.count(f'id="line-m-{name}"') == drawn.count(f'id="line-other-{name}"') == 1
    assert "dc:date" not in drawn
    assert len(drawn) < 100_000
