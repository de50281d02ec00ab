"""What the studies of this folder share: data, networks, and how results are measured and written.

Each study is one program with several arms. All choices (epochs, shares, the best of several) are
made on validation data; the test split is read once for each model that an arm ends with. One
thread, so that a seed gives the same bits again. Raw results of every seed stand in `results/`.

Data: MNIST and Fashion-MNIST; `python examples/fetch.py mnist_cnn fashion_resnet` gets them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lissom

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
sys.path += [str(ROOT / "examples"), str(ROOT / "examples" / "mnist_cnn")]

from idx_images import accuracy  # noqa: E402

METRICS = {"accuracy": accuracy}
Row = dict[str, Any]
Arm = Callable[[int], Row]


# -- data and networks -----------------------------------------------------------------------------


@cache
def _module(name: str) -> Any:
    import importlib.util

    path = ROOT / "examples" / name / "model.py"
    spec = importlib.util.spec_from_file_location(f"study_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def mnist(split: str) -> list[tuple[Tensor, Tensor]]:
    """Normalised images [500, 1, 28, 28] and labels: 55,000, 5,000 and 10,000 samples."""
    return _module("mnist_cnn").data(split)


@cache
def fashion(split: str) -> list[tuple[Tensor, Tensor]]:
    """The same of Fashion-MNIST."""
    return _module("fashion_resnet").data(split)


def mlp(*widths: int, seed: int, norms: bool = False) -> nn.Sequential:
    """Linear layers of these widths with relu between, and batch norms in front of that."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs)]
        layers += [nn.BatchNorm1d(outputs)] if norms and outputs != widths[-1] else []
        layers += [nn.ReLU()] if outputs != widths[-1] else []
    return nn.Sequential(*layers).eval()


def lenet_300_100(seed: int) -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998): 266,610 parameters."""
    return mlp(784, 300, 100, 10, seed=seed)


# -- running ---------------------------------------------------------------------------------------

DATA = """
  data train = sample("train", all)
  data valid = sample("valid", all)
  data calib = sample("train", 500)
"""


def compiled(
    body: str, model: nn.Module, data: Callable[[str], Any] = mnist, rules: str = "", **given: Any
) -> lissom.Result:
    """The model that a pipeline with this body gives; data, and names for it, are those above."""
    program = f"{rules}\npipeline study {{ {DATA} {body} }}"
    inputs = (data("train")[0][0][:2],)
    return lissom.compile(model, program, inputs=inputs, data=data, metrics=METRICS, **given)


def measured(model: nn.Module, data: Callable[[str], Any] = mnist) -> Row:
    """Errors in percent on validation and test data."""
    return {split: 100 * (1 - accuracy(model, data(split))) for split in ("valid", "test")}


def nonzero(model: nn.Module) -> int:
    """Weights of matrices and kernels that are not 0."""
    return sum(int((w != 0).sum()) for w in model.parameters() if w.dim() > 1)


def study(name: str, arms: Mapping[str, Arm], text: str | None, results: Path = RESULTS) -> None:
    """Runs every arm for every seed, writes `results/NAME.csv`, prints mean and spread."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms))
    parser.add_argument("--out", type=Path, default=results / f"{name}.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = _read(given.out)
    for seed in given.seeds:
        for arm in given.arms:
            begun = time.perf_counter()
            row = {"arm": arm, "seed": seed, **arms[arm](seed)}
            row["seconds"] = round(time.perf_counter() - begun, 1)
            print(_shown(row), flush=True)
            rows = [r for r in rows if (r["arm"], int(r["seed"])) != (arm, seed)] + [row]
            _write(given.out, rows)
    print()
    print("\n".join(summary(rows)))


def summary(rows: Sequence[Row]) -> Iterable[str]:
    """Mean and standard deviation over seeds, an arm in each line."""
    arms = dict.fromkeys(row["arm"] for row in rows)
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        names = [name for name in own[0] if name not in ("arm", "seed") and own[0][name] != ""]
        yield f"{arm:24}" + "  ".join(_spread(own, name) for name in names)


def _spread(rows: Sequence[Row], name: str) -> str:
    found = [float(row[name]) for row in rows if row.get(name) not in (None, "")]
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{name} {statistics.mean(found):.6g} ± {deviation:.2g}"


def _shown(row: Row) -> str:
    return "  ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    plain = [{k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(plain, key=lambda row: (row["arm"], int(row["seed"]))))
