"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from lissom.rewrite.evidence import artifact
from lissom.rewrite.export import pt2

from . import fresh


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the expected messages of tests/errors anew; read the difference first",
    )


def pytest_configure() -> None:
    """Several processes share the cores, and the tensors of tests are small: one thread each, for
    what tests start as for themselves. Threads that wait for each other count as busy.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether expected texts are to be written instead of compared."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def _reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved or exported is loaded again in a copy of a process that never saw it.
    test_artifact.py has processes that are started for it.
    """
    monkeypatch.setattr(artifact, "subprocess", fresh)
    monkeypatch.setattr(pt2, "subprocess", fresh)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Whatever ran before, the test runs on one thread; then the former number is restored."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
