"""The examples as tests load them: from their files, each time anew."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(path: Path) -> ModuleType:
    """Run a Python file as a module of its own."""
    name = f"example_{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their module up by name.
    spec.loader.exec_module(module)
    return module


def example(name: str) -> ModuleType:
    """The model file of an example."""
    return load(EXAMPLES / name / "model.py")


def fetch_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """fetch.py, which imports what lies beside it, as scripts do."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return load(EXAMPLES / "fetch.py")


def rows(batches: list[tuple[Tensor, Tensor]]) -> list[bytes]:
    """The bytes of every single input, in order."""
    return [row.numpy().tobytes() for x, _ in batches for row in x]
