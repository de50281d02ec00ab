"""What the tests of damaged and hostile artifacts share: one artifact, and ways to forge it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.store.folder import load


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 2)
        self.two = nn.Linear(2, 3, bias=False)
        self.two.weight = nn.Parameter(self.one.weight.detach().t())
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.two(self.one(x)) * self.scale)
        return {"y": y.reshape(x.shape[0], -1), "sum": torch.sum(y, dim=1)}


def refused(folder: Path) -> str:
    """The code of the one error `load` ends in; anything but a LissomError fails the test."""
    with pytest.raises(LissomError) as error:
        load(folder)
    (diagnostic,) = error.value.diagnostics
    assert diagnostic.message
    assert diagnostic.labels
    assert diagnostic.helps
    return diagnostic.code


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def forge(folder: Path, **files: bytes) -> None:
    """Replace files and put the right hashes into the manifest, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest.pop("self")
    for name, data in files.items():
        full = {"graph": "graph.json", "weights": "weights.safetensors"}[name]
        (folder / full).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][full] = {"sha256": digest, "size": len(data)}
    sign(folder, manifest)


def sign(folder: Path, manifest: dict[str, Any]) -> None:
    digest = hashlib.sha256(canonical(manifest)).hexdigest()
    (folder / "manifest.json").write_bytes(canonical({**manifest, "self": digest}))
