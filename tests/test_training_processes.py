"""Training that is killed, training on several processes: the same weights come out."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lissom.demo import model as digits
from lissom.rewrite.graph.digest import model_digest
from lissom.rewrite.train.checkpoints import CheckpointFile, TrainingState

from .learning import SGD, epochs, net, run, trained

BODY = """
  stage s { once prune_weights(ratio = 50%, budget = 100%) }
  recover tune { epochs = 5; batch = 100; augment = shift(1); schedule = cosine(); OPTIMIZER }
"""
OPTIMIZERS = (
    "optimizer = SGD(lr = 0.1, momentum = 0.9)",
    "optimizer = Adam(lr = 0.01)",
    "optimizer = LBFGS(lr = 0.5, max_iter = 2)",
)


def killed(model: nn.Module, batches: Any) -> float:
    """A metric that ends the process without a word, at the fourth time it is asked for."""
    killed.calls += 1  # type: ignore[attr-defined]
    if killed.calls == 4:  # type: ignore[attr-defined]
        os.kill(os.getpid(), signal.SIGKILL)
    return digits.accuracy(model, batches)


killed.calls = 0  # type: ignore[attr-defined]

DIES = """
import sys
from pathlib import Path
import torch
from tests.learning import net, run
from tests.test_training_processes import BODY, killed
torch.set_num_threads(1)
run(BODY.replace("OPTIMIZER", sys.argv[2]), net(), metrics={"accuracy": killed},
    checkpoints=Path(sys.argv[1]))
"""


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:])
def test_a_killed_training_goes_on_to_the_same_bits(
    optimizer: str, tmp_path: Path, one_thread: None
) -> None:
    body = BODY.replace("OPTIMIZER", optimizer)
    command = [sys.executable, "-c", DIES, str(tmp_path), optimizer]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(list(tmp_path.iterdir())) == 1
    asked = []

    def counted(model: nn.Module, batches: Any) -> float:
        asked.append(1)
        return digits.accuracy(model, batches)

    resumed = run(body, net(), metrics={"accuracy": counted}, checkpoints=tmp_path)
    assert len(asked) == 3  # epochs 3, 4 and 5: the others are in the file
    whole = run(body, net())
    assert model_digest(resumed.model) == model_digest(whole.model)
    said = [(e.number, e.loss, e.metrics) for e in epochs(resumed)]
    assert said == [(e.number, e.loss, e.metrics) for e in epochs(whole)]


def test_a_training_that_ended_is_not_made_again(tmp_path: Path) -> None:
    body = BODY.replace("OPTIMIZER", OPTIMIZERS[0])
    first = run(body, net(), checkpoints=tmp_path)

    def never(model: nn.Module, batches: Any) -> float:
        raise AssertionError

    again = run(body, net(), metrics={"accuracy": never}, checkpoints=tmp_path)
    assert model_digest(first.model) == model_digest(again.model)


@pytest.mark.parametrize("change", ["model", "settings", "data"])
def test_a_checkpoint_of_something_else_counts_for_nothing(change: str, tmp_path: Path) -> None:
    body = BODY.replace("OPTIMIZER", OPTIMIZERS[0])
    run(body, net(), checkpoints=tmp_path)
    if change == "settings":
        body = body.replace("epochs = 5", "epochs = 1")
    model = net(1) if change == "model" else net()
    data = (lambda split: digits.data(split)[:2]) if change == "data" else digits.data
    asked = []

    def counted(model: nn.Module, batches: Any) -> float:
        asked.append(1)
        return digits.accuracy(model, batches)

    run(body, model, data=data, metrics={"accuracy": counted}, checkpoints=tmp_path)
    assert asked
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "noise", "other", "empty"])
def test_a_damaged_checkpoint_is_no_checkpoint(damage: str, tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "one.safetensors", "key")
    file.write(
        TrainingState({"w": torch.ones(3)}, {"w": torch.zeros(3)}, {"state": {0: {"step": 1}}})
    )
    found = file.read()
    assert found is not None
    assert found.optimizer == {"state": {0: {"step": 1}}}
    assert torch.equal(found.weights["w"], torch.ones(3))
    raw = file.path.read_bytes()
    if damage == "other":
        save_file({"w": torch.ones(2)}, file.path)
    else:
        kept = {"cut": raw[: len(raw) // 2], "noise": b"\x00" * len(raw), "empty": b""}
        file.path.write_bytes(kept[damage])
    assert file.read() is None


def test_nothing_but_tensors_and_json_is_written(tmp_path: Path) -> None:
    run(BODY.replace("OPTIMIZER", OPTIMIZERS[1]), net(), checkpoints=tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".safetensors"
    assert {name.partition("/")[0] for name in load_file(path)} == {"weights", "best", "optimizer"}


# -- several processes -----------------------------------------------------------------------------

SHARED = """
import sys
import torch
from tests.learning import net, run
from tests.test_training_processes import UNEVEN, few
from safetensors.torch import save_file
import os
torch.set_num_threads(1)
model = run(UNEVEN, net(), data=few).model
held = {n: w.detach().clone() for n, w in model.named_parameters()}
save_file(held, sys.argv[1] + os.environ["RANK"])
"""
UNEVEN = """
  stage s { once prune_weights(ratio = 50%, budget = 100%) }
  recover tune {
    epochs = 3
    batch = 8
    optimizer = SGD(lr = 0.1, momentum = 0.9)
    teacher = original
    loss = task() + kl() + hint(at = "2", of = "3")
  }
"""
"""The hint needs an adapter, which both processes train, too."""


def few(split: str) -> Any:
    """25 samples: the last batch of 8 holds a single one."""
    x, y = digits.data(split)[0]
    return [(x[:25], y[:25])]


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
        command = [sys.executable, "-c", SHARED, str(tmp_path / "weights")]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **place},
            stderr=subprocess.PIPE,
        )
        started.append(process)
    said = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    alone = dict(run(UNEVEN, net(), data=few).model.named_parameters())
    for rank in range(2):
        for name, weight in load_file(tmp_path / f"weights{rank}").items():
            assert torch.allclose(weight, alone[name].detach(), rtol=1e-4, atol=1e-6), name


def test_every_sample_counts_once_whoever_takes_it() -> None:
    """What one process does with a batch is what all do together."""
    from lissom.grammar.diagnostics import Label
    from lissom.rewrite.train.data import TrainingData

    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    data = TrainingData([((x,), y)], Label(None))
    for world in (1, 2, 3, 7):
        seen, total = [], 0.0
        for rank in range(world):
            drawn = torch.Generator().manual_seed(3)
            for batch in data.epoch(4, drawn, rank, world):
                if batch.share:
                    seen += batch.target.tolist()
                total += batch.share
        assert sorted(seen) == list(range(10))
        assert total == pytest.approx(3)


def test_a_seed_is_all_that_a_run_depends_on() -> None:
    result = run(f"recover tune {{ epochs = 1; {SGD} }}")
    (event,) = trained(result)
    assert event.settings["seed"] == 0
    assert set(event.data) == {"train", "valid"}
    assert all(len(digest) == 64 for digest in event.data.values())
    assert set(event.versions) == {"torch", "accelerate"}
