"""LeNet-5 on MNIST with one exit behind its first convolution (BranchyNet, Teerapittayanon et al.
2016, arXiv:1709.01686, table I: 5.4 times faster on a CPU at 99.25 % against 99.20 %).

The threshold is chosen on validation data: no more errors there than without the exit. Beside it: a
network without, trained as long; samples that leave at random, as many; and the same weights and
threshold in earlyon (`pip install --no-deps earlyon==0.3.0`), of which a batch leaves where its
hardest sample may. Latency: one thread, medians in turns, in torch and in ONNX
Runtime (parts and driver as `lissom export` writes them).
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from earlyon import EarlyExitConfig, EarlyExitWrapper, ExitPoint
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "learning"))

from study import Row, compiled, measured, mnist, study

import lissom
from lissom.rewrite.runtime.exits import EarlyExit

SETTINGS = """
    epochs = 10
    optimizer = Adam(lr = 0.002)
    schedule = cosine(warmup = 5%)
    augment = shift(1)
    seed = SEED
"""
DENSE = f"recover all {{ {SETTINGS} }}"
EXITS = f"""
  stage exits {{ once exit_head(grid = 6) at "first" }}
  recover all {{ {SETTINGS} }}
  exit on valid until accuracy >= WANTED
"""


KEPT = Path(tempfile.gettempdir(), "lissom-studies")
"""Trainings that ended are found here again."""


class LeNet5(nn.Module):
    """LeNet-5 of Caffe: 431,080 parameters, 2,293,000 multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2))
        self.third = nn.Sequential(nn.Flatten(), nn.Linear(800, 500), nn.ReLU())
        self.last = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.third(self.second(self.first(x))))


def fresh(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return LeNet5().eval()


@cache
def dense(seed: int) -> lissom.Result:
    return compiled(DENSE.replace("SEED", str(seed)), fresh(seed), checkpoints=KEPT)


@cache
def with_exits(seed: int) -> lissom.Result:
    """Trained once; then the threshold at which no more validation digits are misread than without
    the exit.
    """
    text, choose = EXITS.replace("SEED", str(seed)).split("exit on")
    model = compiled(text, fresh(seed), checkpoints=KEPT).model
    model.exits = False
    wanted = 100 - measured(model)["valid"]
    text += f"exit on{choose.replace('WANTED', f'{wanted:.4f}%')}"
    return compiled(text, fresh(seed), checkpoints=KEPT)


# -- what is measured ------------------------------------------------------------------------------


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The test split as one batch."""
    pairs = mnist("test")
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def shares(model: EarlyExit) -> list[float]:
    """Of the test digits, those that leave at each depth."""
    with torch.no_grad():
        _, exits = model(digits()[0], return_exit=True)
    return [float((exits == depth).float().mean()) for depth in range(1, len(model.bodies) + 1)]


def average_macs(result: lissom.Result) -> float:
    """Multiply-accumulates of a test digit."""
    costs = [row.macs / 2 for row in result.exits.rows]  # the example has two samples
    return sum(share * cost for share, cost in zip(shares(result.model), costs, strict=True))


def milliseconds(models: list[Callable[[Tensor], Any]], batch: int) -> list[float]:
    """Of a batch, medians over test digits, in turns."""
    x, taken = digits()[0], [[] for _ in models]
    with torch.no_grad():
        for at in range(0, min(len(x), 1000 * batch) - batch + 1, batch):
            for model, times in zip(models, taken, strict=True):
                begun = time.perf_counter()
                model(x[at : at + batch])
                times.append(1e3 * (time.perf_counter() - begun))
    return [statistics.median(times[5:]) for times in taken]


def earlyon_of(seed: int) -> EarlyExitWrapper:
    """The same network, head and threshold in earlyon."""
    result = with_exits(seed)
    held = {name: value.detach() for name, value in result.compiled.model.state_dict().items()}
    linear = nn.Linear(720, 10)
    head = next(name for name in held if "exit_head" in name).rpartition(".")[0]
    linear.load_state_dict({name: held.pop(f"{head}.{name}") for name in ("weight", "bias")})
    backbone = LeNet5()
    backbone.load_state_dict(held)
    config = EarlyExitConfig(
        backbone="custom",
        num_classes=10,
        exit_points=[ExitPoint("early", "first", 20)],
        confidence_thresholds=[result.model.thresholds[0]],
    )
    heads = {"early": nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), linear)}
    return EarlyExitWrapper(backbone, heads, nn.Identity(), config, (1, 1, 28, 28)).eval()


# -- arms ------------------------------------------------------------------------------------------


def row(seed: int) -> Row:
    result = with_exits(seed)
    model, trunk = result.model, dense(seed).model
    found = {**measured(model), "macs": average_macs(result), "leave": 100 * shares(model)[0]}
    found["fewer"] = dense(seed).after.macs / 2 / found["macs"]
    peer = earlyon_of(seed)
    for batch in (1, 32, 256):
        other = peer if batch == 1 else peer.forward_inference_batched
        whole, exits, theirs = milliseconds([trunk, model, other], batch)
        found |= {f"ms {batch}": exits, f"faster {batch}": whole / exits}
        found[f"earlyon faster {batch}"] = whole / theirs
    model.thresholds = [2.0]  # nobody leaves
    whole, exits = milliseconds([trunk, model], 256)
    found["slower if nobody leaves"] = 100 * (exits / whole - 1)
    model.thresholds = [float(result.exits.rows[0].test.split()[1])]
    return found


def in_onnx_runtime(seed: int) -> Row:
    """Milliseconds of a digit, whole and with the exit."""
    with tempfile.TemporaryDirectory() as folder:
        for name, result in (("whole", dense(seed)), ("parts", with_exits(seed))):
            lissom.export(result.save(Path(folder, name)), Path(folder, f"{name}.onnx"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        trunk = ort.InferenceSession(str(Path(folder, "whole.onnx")), options)
        spec = importlib.util.spec_from_file_location("parts", Path(folder, "parts_exits.py"))
        driver = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(driver)
        parts = driver.ExitNetwork(Path(folder, "parts.onnx.json"), options)
    name = trunk.get_inputs()[0].name
    runs = [lambda x: trunk.run(None, {name: x.numpy()}), lambda x: parts(x.numpy())]
    whole, exits = milliseconds(runs, 1)
    return {"ms 1": exits, "faster 1": whole / exits}


def at_random(seed: int) -> Row:
    """As many leave, whichever they are."""
    model = with_exits(seed).model
    share = shares(model)[0]
    found = {}
    for split in ("valid", "test"):
        right = [accuracy_at(model, split, depth) for depth in (1, 2)]
        found[split] = 100 * (1 - share * right[0] - (1 - share) * right[1])
    return found


def accuracy_at(model: EarlyExit, split: str, depth: int) -> float:
    model.depth = depth
    found = 1 - measured(model)[split] / 100
    model.depth = None
    return found


def whole(seed: int) -> Row:
    (ms,) = milliseconds([dense(seed).model], 1)
    return {**measured(dense(seed).model), "macs": dense(seed).after.macs / 2, "ms 1": ms}


def off(seed: int) -> Row:
    """The network with exits, which nobody takes."""
    model = with_exits(seed).model
    model.exits = False
    found = measured(model)
    model.exits = True
    return found


ARMS = {
    "dense": whole,
    "exits": row,
    "exits off": off,
    "at random": at_random,
    "ONNX Runtime": in_onnx_runtime,
}

if __name__ == "__main__":
    study("branchy_lenet", ARMS, __doc__, Path(__file__).resolve().parent / "results")
