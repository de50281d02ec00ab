#!/usr/bin/env bash
# A GraphModule stores buffers that its model left out of the state dict.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/fx/graph_module.py, _copy_attr: register_buffer(field, orig) without `persistent`
# Expected: what was registered with persistent=False stays out of the state dict
# Seen: after tracing it is in the state dict of the GraphModule, and of its deep copy
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


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(3), persistent=False)

    def forward(self, x):
        return x * self.table


model = Scaled()
assert list(model.state_dict()) == []
found = list(fx.symbolic_trace(model).state_dict())
print("state dict of the model []", "of the GraphModule", found)
if found == []:
    raise SystemExit("changed: the buffer stays out")
PYTHON
