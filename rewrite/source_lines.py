"""Lines of a model's own code: neither torch's nor this package's."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_SKIPPED = (*(f"{folder}{os.sep}" for folder in (_HERE, _HERE.resolve(), _TORCH)), "<")


def is_model_file(name: str) -> bool:
    """True for a source file outside of torch and of this package."""
    return not name.startswith(_SKIPPED)


def place(file: str, line: int) -> str:
    """`file.py:line`, which is how messages name a line of a model."""
    return f"{Path(file).name}:{line}"
