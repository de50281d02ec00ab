#!/usr/bin/env bash
# Nearest resizing of an empty batch: eager gives an empty result, shape inference raises TypeError.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/_meta_registrations.py, `upsample_nearest1d`, `2d` and `3d`: the condition given to
#   `torch._check` is `numel() != 0 or multiply_integers(sizes)`, a number where the first half is false
# Expected: fake and meta tensors have the shape that eager gives, or a message about the input; so it is for
#   linear, bilinear and trilinear
# Seen: "cond must be a bool, but got <class 'int'>" for nearest and nearest-exact, in one, two and three
#   dimensions; so FakeTensorMode, torch.export and torch.compile fail on a batch that eager takes
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.nn import functional as F


def outcome(dims: int, mode: str, device: str) -> str:
    x = torch.empty(0, 3, *[4] * dims, device=device)
    try:
        return str(tuple(F.interpolate(x, scale_factor=2, mode=mode).shape))
    except TypeError as error:
        return str(error)


LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
for dims, linear in LINEAR.items():
    for mode in ("nearest", "nearest-exact", linear):
        eager, inferred = outcome(dims, mode, "cpu"), outcome(dims, mode, "meta")
        print(f"{dims}d {mode}: eager {eager}, meta {inferred}")
        if eager != str((0, 3, *[8] * dims)):
            raise SystemExit("changed: eager")
        wanted = eager if mode == linear else "cond must be a bool, but got <class 'int'>"
        if inferred != wanted:
            raise SystemExit("changed: shape inference")
PYTHON
