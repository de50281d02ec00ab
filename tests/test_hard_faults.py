"""H28: out of memory, Ctrl-C, time-outs and dying processes end cleanly and leave all as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import lissom
from lissom.__main__ import main
from lissom.grammar.diagnostics import LissomError

from . import fresh
from .support import Fn, digests

RULE = """
extern fn mine(w: f[...]) -> f[...] pure

exact rule copies {
  match {
    h = linear(x) as l
    y = identity(h)
  }
  rewrite { y = l(x, weight = mine(l.weight)) from l }
}
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Identity()).eval()


X = torch.ones(2, 6)

# -- in one process --------------------------------------------------------------------------------


class Lost(Exception):
    """An error that lissom has never heard of."""


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, SystemExit])
def test_h28_what_stops_python_passes_through_a_rule(fault: type[BaseException]) -> None:
    def mine(w: torch.Tensor) -> torch.Tensor:
        raise fault

    model = network()
    before = digests(model)
    with pytest.raises(fault):
        lissom.compile(model, RULE, inputs=(X,), functions={"mine": mine})
    assert digests(model) == before
    again = lissom.compile(model, RULE, inputs=(X,), functions={"mine": lambda w: w})
    assert [event.site for event in again.applied] == ["0"], "the next run is not disturbed"


@pytest.mark.parametrize(
    "fault", [Lost("why"), TimeoutError("late"), OSError("gone"), AssertionError("no"), KeyError(1)]
)
def test_h28_other_errors_of_a_function_are_placed_in_the_rule(fault: Exception) -> None:
    """I29: a function that raises is named, with the error and with the place in text and model."""

    def mine(w: torch.Tensor) -> torch.Tensor:
        raise fault

    model = network()
    before = digests(model)
    with pytest.raises(LissomError) as caught:
        lissom.compile(model, RULE, inputs=(X,), functions={"mine": mine})
    (found,) = caught.value.diagnostics
    assert (found.code, found.message) == ("R001", "`mine(l.weight)` cannot be computed")
    assert found.labels[0].text == f"{type(fault).__name__}: {fault}"
    assert any(label.where and label.where.startswith("0 ") for label in found.labels)
    assert digests(model) == before


def test_h28_more_memory_than_there_is() -> None:
    functions = {"mine": lambda w: torch.empty(10**15)}
    with pytest.raises(LissomError, match=r"R001(.|\n)*allocate"):
        lissom.compile(network(), RULE, inputs=(X,), functions=functions)


@pytest.mark.parametrize(("fault", "code"), [(MemoryError, "M004"), (TimeoutError, "M004")])
def test_h28_a_model_that_fails_is_refused(fault: type[Exception], code: str) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        raise fault("while running")

    with pytest.raises(LissomError) as caught:
        lissom.compile(Fn(forward), RULE, inputs=(X,), functions={"mine": lambda w: w})
    assert caught.value.diagnostics[0].code == code
    assert f"{fault.__name__}: while running" in caught.value.diagnostics[0].message


# -- on the command line ---------------------------------------------------------------------------

MODEL = """
import os, signal, sys, time, torch
from torch import nn

fault = os.environ.get("FAULT", "")

def act(kind):
    if kind == "memory":
        raise MemoryError("no more")
    if kind == "signal":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)  # here it is raised, and nowhere that swallows it
    if kind == "exit":
        sys.exit()
    if kind == "die":
        os._exit(9)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.i = nn.Linear(6, 6), nn.Identity()

    def forward(self, x):
        act(fault.removeprefix("model "))
        return self.i(self.a(x))

def build():
    torch.manual_seed(0)
    return Net().eval()

def inputs():
    return (torch.ones(2, 6),)

def mine(w):
    act(fault.removeprefix("rule "))
    return w

functions = {"mine": mine}
"""
CASES = {
    "rule memory": (2, "error[U099]"),
    "rule signal": (130, "interrupted"),
    "rule exit": (2, "error[U099]: the model's own code ended Python"),
    "model memory": (3, "error[M004]"),
    "model signal": (130, "interrupted"),
    "model exit": (2, "error[U099]: the model's own code ended Python"),
}


def write_case(folder: Path) -> None:
    (folder / "model.py").write_text(MODEL)
    (folder / "rule.lissom").write_text(RULE)


def elsewhere(folder: Path, fault: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    env = {**os.environ, "FAULT": fault, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "lissom", *arguments]
    return fresh.run(command, cwd=folder, env=env)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A shell starts what runs in its background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_h28_the_command_line_ends_with_a_code_and_the_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a traceback, never exit code 0, never a half-written or lost artifact."""
    write_case(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["apply", "model.py:build", "rule.lissom", "-o", "out"]
    monkeypatch.setenv("FAULT", "")
    assert main(arguments) == 0
    before, names = contents(tmp_path / "out"), set(os.listdir(tmp_path))
    for fault, (code, said) in CASES.items():
        capsys.readouterr()
        monkeypatch.setenv("FAULT", fault)
        assert main(arguments) == code, fault
        shown = capsys.readouterr().err
        assert said in shown, fault
        assert "Traceback" not in shown, fault
        assert contents(tmp_path / "out") == before, fault
        assert set(os.listdir(tmp_path)) == names, fault


@pytest.mark.slow
def test_h28_a_process_that_dies(tmp_path: Path) -> None:
    """While compiling: the old artifact stays. In a worker of `lissom test`: its rule is named."""
    write_case(tmp_path)
    (tmp_path / "out").mkdir()
    arguments = ("apply", "model.py:build", "rule.lissom", "-o", "out")
    assert elsewhere(tmp_path, "rule die", *arguments).returncode == 9
    assert contents(tmp_path / "out") == {}
    other = RULE.replace("copies", "others").replace("identity", "relu")
    other = other.replace("y = l(", "g = l(").replace(
        " from l }", " from l\n  y = clamp(g, min = 0) }"
    )
    (tmp_path / "two.lissom").write_text(RULE + other.partition("pure\n")[2])
    options = ("--python", "model.py", "--models", "5", "--jobs", "2")
    done = elsewhere(tmp_path, "rule die", "test", "two.lissom", *options)
    assert done.returncode == 1, done.stderr
    assert "each of its models ended the process that tried it" in done.stderr
    assert "exit with code 9" in done.stderr
    assert "Traceback" not in done.stderr
