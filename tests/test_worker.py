"""A trial that kills its process costs that trial and no more."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lissom.cli import cli
from lissom.grammar.text.parse import parse
from lissom.grammar.tree import tree as t
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.ops.vocabulary import Vocabulary
from lissom.rewrite.proving.prove import Proof, explore, prove
from lissom.rewrite.proving.subject import Subject
from lissom.rewrite.proving.worker import Died, Worker

TWICE = """
exact rule twice {
  match {
    h = mul(x, 0.5)
    y = mul(h, 0.5)
  }
  rewrite { y = mul(x, 0.25) }
}
"""
SQUARE: Callable[[int], int] = lambda n: n * n  # noqa: E731


class Deadly(TorchDispatchMode):
    """While it is active the kernel of one op ends the process, in one precision."""

    def __init__(self, op: str, dtype: torch.dtype, end: Callable[[], Any]) -> None:
        super().__init__()
        self.op, self.dtype, self.end, self.own = op, dtype, end, os.getpid()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        value = func(*args, **(kwargs or {}))
        first = tree_leaves(value)[0]
        if func.overloadpacket.__name__ == self.op and first.dtype == self.dtype:
            assert os.getpid() != self.own, "it would have been the process of the tests"
            self.end()
        return value


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ended() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def left() -> None:
    os._exit(3)


def twice() -> Subject:
    (rule,) = parse(TWICE).all(t.Rule)
    return Subject(rule, Vocabulary.library(), FUNCTIONS)


# -- the process -----------------------------------------------------------------------------------


def test_calls_run_elsewhere_and_keep_what_they_know() -> None:
    seen: list[int] = []

    def told(number: int) -> tuple[int, int]:
        seen.append(number)
        return sum(seen), os.getpid()

    with Worker(told) as worker:
        first, second = worker(1), worker(2)
    assert (first[0], second[0]) == (1, 3)
    assert first[1] == second[1] != os.getpid()
    assert seen == []


@pytest.mark.parametrize(
    ("end", "how"),
    [(killed, "killed by SIGKILL"), (ended, "SIGTERM"), (left, "exit with code 3")],
)
def test_a_death_is_told_and_the_next_call_gets_another_process(
    end: Callable[[], None], how: str
) -> None:
    with Worker(lambda deadly: end() if deadly else os.getpid()) as worker:
        first = worker(False)
        with pytest.raises(Died, match=how):
            worker(True)
        assert worker(False) not in (first, os.getpid())


def test_what_a_call_raises_is_raised_here() -> None:
    with Worker(lambda: 1 // 0) as worker, pytest.raises(ZeroDivisionError):
        worker()


def test_what_cannot_be_sent_is_said() -> None:
    with Worker(lambda: lambda: 0) as worker:
        for _ in range(2):
            with pytest.raises(TypeError, match="a result cannot be sent"):
                worker()


def test_workers_inside_workers() -> None:
    def outer(number: int) -> int:
        with Worker(SQUARE) as inner:
            return inner(number) + 1

    with Worker(outer) as worker, Worker(SQUARE) as other:
        assert (worker(3), other(3), worker(4)) == (10, 9, 17)


def test_no_process_is_left_behind() -> None:
    before = set(multiprocessing.active_children())  # those of other tests
    with Worker(SQUARE) as worker:
        worker(2)
        assert len(set(multiprocessing.active_children()) - before) == 1
    assert set(multiprocessing.active_children()) <= before


def test_where_no_process_can_be_forked_calls_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with Worker(os.getpid) as worker:
        assert worker() == os.getpid()


def test_a_process_ends_when_the_one_that_asks_is_gone(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from lissom.rewrite.proving.worker import Worker\n"
        "worker = Worker(os.getpid)\n"
        "print(worker(), flush=True)\n"
        "os._exit(0)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    other = int(found.stdout)
    for _ in range(100):
        try:
            os.kill(other, 0)
        except ProcessLookupError:
            return
        signal.sigtimedwait([], 0.05)
    raise AssertionError("it is still there")


# -- trials ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [killed, left])
def test_a_trial_that_dies_costs_that_trial(end: Callable[[], None]) -> None:
    plain = explore(twice(), 60)
    with Deadly("mul", torch.bfloat16, end):
        found, again = explore(twice(), 60), explore(twice(), 60)
    assert found.failure is None
    assert found.models >= 60
    assert plain.died == []
    assert 1 <= len(found.died) < 32
    assert found.died[0].trial.startswith("model ")
    assert found.died[0].trial.endswith(" of seed 0")
    assert (found.died, found.tapes, found.fired) == (again.died, again.tapes, again.fired)


def test_a_whole_proof_goes_on() -> None:
    with Deadly("mul", torch.float16, killed):
        proof: Proof = prove(twice(), 60)
    assert proof.failures == []
    assert len(proof.mutants.fates) >= 10
    assert len(proof.algebra) > 0
    assert len(proof.died) >= 1


def test_a_rule_whose_every_model_dies_comes_to_an_end() -> None:
    with Deadly("mul", torch.float32, left):
        found = explore(twice(), 40)
    assert len(found.died) == 32
    assert found.fired == 0


def test_deaths_are_shown_and_written_down(tmp_path: Path) -> None:
    rules = tmp_path / "rules.lissom"
    rules.write_text(TWICE)
    path = tmp_path / "proof.json"
    options = ["--models", "30", "--jobs", "1", "--certificate", str(path)]
    with Deadly("mul", torch.bfloat16, killed):
        found = CliRunner().invoke(cli, ["test", str(rules), *options])
    assert found.exit_code == 0, found.output
    assert "ended the process: model " in found.stdout
    assert "killed by SIGKILL" in found.stdout
    (rule,) = json.loads(path.read_text())["rules"]
    assert rule["died"][0]["how"] == "killed by SIGKILL"
