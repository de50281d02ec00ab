#!/usr/bin/env bash
# In the code that torch.fx generates, an input called `nan` hides the number nan.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/fx/graph.py: globals of generated code are called nan, inf, torch ..., and so may inputs be
# Expected: the traced module computes what the module computes
# Seen: where the module puts nan, the traced one puts the input: 7 instead of nan
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import fx, nn


class Masked(nn.Module):
    def forward(self, x, nan):
        return torch.where(nan > 5, float("nan"), x)


model = Masked()
traced = fx.symbolic_trace(model)
x, mask = torch.zeros(2), torch.tensor([7.0, 1.0])
own, other = model(x, mask), traced(x, mask)
print("module", own.tolist(), "traced", other.tolist())
print(traced.code.strip())
assert own[0].isnan()
if other[0].isnan():
    raise SystemExit("changed: the traced module gives nan as well")
assert other[0] == 7.0
PYTHON
