"""Lines of a model's own code: neither torch's nor this package's."""

from __future__ import annotations

import os
from pathlib import Path
from types import FrameType

import torch

_HERE = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent
_OURS = tuple(f"{folder}{os.sep}" for folder in (_HERE, _HERE.resolve()))
_SKIPPED = (*_OURS, f"{_TORCH}{os.sep}", "<")


def is_model_file(name: str) -> bool:
    """True for a source file outside of torch and of this package."""
    return not name.startswith(_SKIPPED)


def line_above(frame: FrameType | None, end: FrameType | None) -> str:
    """`file.py:line` of the innermost frame that belongs to the model, up to `end`; "" for none."""
    while frame is not None and frame is not end:
        if is_model_file(frame.f_code.co_filename):
            return place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def is_asked_by_model(frame: FrameType) -> bool:
    """Whether the innermost frame outside of this package is the model's own code, not torch's."""
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return is_model_file(frame.f_code.co_filename)


def place(file: str, line: int) -> str:
    """`file.py:line`, which is how messages name a line of a model."""
    return f"{Path(file).name}:{line}"
