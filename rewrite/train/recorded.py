"""Outputs of a teacher that can only be asked, in a file: written once, read without running
anything in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...grammar.diagnostics import Label, LissomError, fail
from ..store.files import read_file, write_file
from ..store.tensors import MAX_BYTES

OUTPUTS = "outputs"
"""The one tensor of such a file, `[samples, ...]`."""


def write_recorded(path: Path, outputs: Tensor, said: Mapping[str, Any]) -> Path:
    """Replaces the file in one step. said: what the outputs are of. Raises U005."""
    held = {OUTPUTS: outputs.contiguous()}
    return write_file(path, save(held, {"lissom": json.dumps(dict(said))}))


def read_recorded(path: Path, place: Label) -> tuple[Tensor, Mapping[str, Any]]:
    """The outputs of a file that `write_recorded` wrote, in memory of their own, and what it says
    of them. Raises F105 for whatever else the file is.
    """
    try:
        content = read_file(path, MAX_BYTES)
        outputs, said = load(content)[OUTPUTS].clone(), _said(content)
        require_numbers(outputs)
        return outputs, said
    except LissomError as error:
        note = error.diagnostics[0].message
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        note = f"{type(error).__name__}: {error}"
    except RecursionError:
        note = "it is nested too deep"
    hint = "write one with `lissom record MODEL --split train -o FILE`"
    raise fail("F105", f"`{path.name}` holds no recorded outputs", place, note=note, help=hint)


def _said(content: bytes) -> Mapping[str, Any]:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    said = json.loads(header.get("__metadata__", {}).get("lissom", "{}"))
    if not isinstance(said, dict):
        raise ValueError("what it says of itself is no table")
    return said


def require_numbers(outputs: Tensor) -> None:
    """Raises ValueError for what no student can follow."""
    if not outputs.is_floating_point() or outputs.dim() == 0:
        raise ValueError(f"outputs are floating numbers, not {outputs.dtype} of {outputs.dim()}-d")
    if not torch.isfinite(outputs).all():
        raise ValueError("some outputs are infinite or no numbers")
