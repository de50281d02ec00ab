"""Options and fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the expected messages of tests/errors anew; read the difference first",
    )


def pytest_configure() -> None:
    """Several processes share the cores, and the tensors of tests are small."""
    torch.set_num_threads(1)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether expected texts are to be written instead of compared."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Whatever ran before, the test runs on one thread; then the former number is restored."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
