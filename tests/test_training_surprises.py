"""docs/surprises.md, its part on training: what torch, accelerate and gloo do is right here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lissom.grammar.diagnostics import LissomError
from lissom.passes.training import clipped
from lissom.rewrite.runtime.layers import Int8Layer

from .learning import SGD, epochs, run, trained, weights
from .test_kernel_surprises import TESTS, functions, rows
from .test_training_bad_input import X, small, tuned

TUNE = f"recover tune {{ epochs = 1; {SGD} }}"


def test_each_test_of_this_file_stands_in_the_page() -> None:
    listed = {name for row in rows() for _, name in TESTS.findall(row[2])}
    own = {name for name in functions(Path(__file__).name) if name.startswith("test_")}
    assert {name for name in own - listed if not name.startswith("test_each_")} == set()


def test_the_gradient_at_the_clip() -> None:
    """It is dropped where a step against it would lead out, and kept where it leads back."""
    w = torch.tensor([-1.0, -1.0, 0.5, 1.0, 1.0, 3.0, 3.0], requires_grad=True)
    pull = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    clipped(w, -1, 1).backward(pull)
    assert w.grad is not None
    assert w.grad.tolist() == [0, -1, 1, 1, 0, 1, 0]


def test_codes_stay_bit_for_bit_beside_what_is_trained() -> None:
    """Averages and decay of weights in int8 would wrap or round."""
    stage = 'stage q { once watch; calibrate calib; once int8_linear at "1" }'
    with pytest.warns(UserWarning, match="integer layers do not train"):
        before, after = run(stage), run(f"{stage} {TUNE}")
    old, new = ([m for m in r.model.modules() if isinstance(m, Int8Layer)] for r in (before, after))
    assert len(old) == len(new) == 1
    assert torch.equal(old[0].weight, new[0].weight)
    assert new[0].weight.dtype is torch.int8
    assert not torch.equal(*(next(weights(r.model)) for r in (before, after)))


def test_an_exported_program_keeps_its_weights_when_it_is_trained() -> None:
    exported = torch.export.export(small(), (X,))
    kept = {name: w.clone() for name, w in exported.state_dict.items()}
    body = "recover tune { epochs = 3; batch = 20; optimizer = SGD(lr = 0.1) }"
    result = tuned(exported.module(), body=body, inputs=(X,))
    assert trained(result)[0].best > 0
    assert all(torch.equal(w, kept[name]) for name, w in exported.state_dict.items())


def test_a_graph_that_was_trained_runs_the_code_that_it_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With mixed precision, accelerate leaves the function of before on the object."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10)
    folded = run(f"{TUNE} stage fold {{ once fold_bn }}", nn.Sequential(*layers).eval()).model
    assert "forward" not in vars(folded)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(3, 1, 8, 8)
    copied = torch.fx.GraphModule(folded, folded.graph)
    assert torch.equal(folded(x), copied(x))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_optimizers_are_for_weights_that_lie_in_one_piece(name: str) -> None:
    """They take the numbers in the order of memory, whatever the strides."""
    body = f"recover tune {{ epochs = 1; optimizer = {name}(lr = 0.01, fused = true) }}"
    assert trained(run(body))[0].epochs == 1
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    model = nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)
    with pytest.raises(LissomError, match=r"F004.*fused"):
        run(body, model)


class Reader(nn.Module):
    """Rows of an image, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reads(x[:, 0])[0][:, -1])


def test_an_lstm_is_judged_as_it_will_run() -> None:
    """Its last bits follow whether gradients are recorded, and frozen weights change nothing."""
    seen: list[bool] = []

    def summed(model: nn.Module, batches: Any) -> float:
        seen.append(torch.is_grad_enabled())
        return float(sum(model(x).double().sum() for x, _ in batches))

    torch.manual_seed(0)
    result = run(TUNE, Reader().eval(), metrics={"summed": summed})
    (event,) = trained(result)
    judged = epochs(result)[event.best].metrics["summed"]
    from lissom.demo import model as digits

    with torch.no_grad():
        assert summed(result.model, digits.data("valid")) == judged
    assert not any(seen)


def test_rules_rank_the_weights_that_there_are() -> None:
    """Not those of the last run of the model."""
    dense = run(f"recover tune {{ epochs = 3; {SGD} }}")
    prune = "stage prune { once prune_weights(ratio = 50%, budget = 100%) }"
    pruned = run(f"recover tune {{ epochs = 3; {SGD} }} {prune}")
    for w, cut in zip(weights(dense.model), weights(pruned.model), strict=True):
        assert float(w[cut == 0].abs().max()) <= float(w[cut != 0].abs().min())


def test_a_model_with_parametrizations_still_runs_when_a_copy_was_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(64, 10))).eval()
    x = torch.randn(2, 1, 8, 8)
    before = model(x)
    result = run(TUNE, model)
    assert torch.equal(model(x), before)
    assert not torch.equal(result.model(x), before)


# -- several processes -----------------------------------------------------------------------------

SPOILT = """
import torch
from tests.learning import net, run, trained
from tests.test_training_surprises import spoilt
torch.set_num_threads(1)
body = "recover tune { epochs = 3; batch = 8; minutes = 60; optimizer = SGD(lr = 0.1) }"
result = run(body, net(), data=spoilt, metrics={})
print(trained(result)[0].stopped)
"""


def spoilt(split: str) -> Any:
    """16 samples, of which one in the training data is no number: one process alone sees it."""
    from lissom.demo import model as digits

    x, y = digits.data("train")[0]
    x = x[:16].clone()
    if split == "train":
        x[3] = float("nan")
    return [(x, y[:16])]


def test_processes_stop_together_where_one_sees_a_number_that_is_none() -> None:
    """MAX over gloo may lose it, and who goes on alone waits for ever."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
        command, env = [sys.executable, "-c", SPOILT], {**os.environ, **place}
        told: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=Path(__file__).parents[1], env=env, **told))
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    reasons = {out.strip() for out, _ in said}
    assert len(reasons) == 1
    assert "the loss is no number" in reasons.pop()
