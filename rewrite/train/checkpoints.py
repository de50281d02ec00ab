"""Where a training stands, in one file: written whole after each epoch, read without running
anything in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..store.files import write_file

FORMAT = 1

Tensors = dict[str, Tensor]


@dataclass
class TrainingState:
    """Everything that the next epoch follows from. weights: by path, as the optimiser moves them;
    best: those of the best epoch; optimizer: its `state_dict`; history: one entry for each epoch.
    """

    weights: Tensors
    best: Tensors
    optimizer: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


@dataclass(frozen=True)
class CheckpointFile:
    """One file for one training. `key` says what it is a training of: a file of another one counts
    for nothing.
    """

    path: Path
    key: str

    def write(self, standing: TrainingState) -> None:
        """Replaces the file in one step. Raises U005."""
        tensors: Tensors = {}
        for name, held in (("weights", standing.weights), ("best", standing.best)):
            tensors |= {f"{name}/{path}": _own(tensor) for path, tensor in held.items()}
        optimizer = _packed(standing.optimizer, tensors)
        said = {"format": FORMAT, "key": self.key, "history": standing.history}
        said |= {"optimizer": optimizer, "done": standing.done}
        write_file(self.path, save(tensors, {"lissom": json.dumps(said)}))

    def read(self) -> TrainingState | None:
        """Where it stood; None where there is no such file, or one of something else."""
        try:
            with safe_open(self.path, "pt") as file:
                said = json.loads((file.metadata() or {}).get("lissom", "{}"))
                if (said.get("format"), said.get("key")) != (FORMAT, self.key):
                    return None
                # Copies: tensors in a file lie where they lie, and kernels that read in wide steps
                # give other last bits where memory is not aligned.
                names = list(file.keys())
                tensors = {name: file.get_tensor(name).clone() for name in names}
        except (OSError, SafetensorError, ValueError):
            return None
        parts = {part: _under(tensors, part) for part in ("weights", "best")}
        optimizer = _unpacked(said["optimizer"], tensors)
        return TrainingState(
            **parts, optimizer=optimizer, history=said["history"], done=said["done"]
        )


def _under(tensors: Mapping[str, Tensor], part: str) -> Tensors:
    return {
        name.removeprefix(f"{part}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{part}/")
    }


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _packed(value: Any, tensors: Tensors) -> Any:
    """Nested tables and lists as JSON, with tensors put aside under names."""
    if isinstance(value, Tensor):
        name = f"optimizer/{len(tensors)}"
        tensors[name] = _own(value)
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = [[key, _packed(held, tensors)] for key, held in value.items()]
        return {"table": pairs}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(item, tensors) for item in value]}
    return {"value": value}


def _unpacked(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, held),) = packed.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "table":
        return {key: _unpacked(value, tensors) for key, value in held}
    if kind in ("list", "tuple"):
        items = [_unpacked(item, tensors) for item in held]
        return tuple(items) if kind == "tuple" else items
    return held


def tensors_of(module: torch.nn.Module) -> Tensors:
    """Copies of all parameters and buffers, by path; tied ones once."""
    held = [*module.named_parameters(), *module.named_buffers()]
    return {path: tensor.detach().clone() for path, tensor in held}


@torch.no_grad()
def put_back(module: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes them into the module's parameters and buffers."""
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.copy_(tensors[path])
