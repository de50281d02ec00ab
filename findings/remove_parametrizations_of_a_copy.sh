#!/usr/bin/env bash
# Removing the parametrization of a deep copy breaks the original layer.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/nn/utils/parametrize.py, remove_parametrizations: deletes the property from the class, which a deep copy shares
# Expected: `copy.deepcopy` gives a layer of its own: the original computes as before
# Seen: the original raises AttributeError, its class has lost the property `weight`
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

layer, x = weight_norm(nn.Linear(3, 3)), torch.ones(1, 3)
before = layer(x)
twin = copy.deepcopy(layer)
assert type(twin) is type(layer)  # the class made for this one layer
remove_parametrizations(twin, "weight")
assert torch.allclose(twin(x), before)
try:
    layer(x)
except AttributeError as error:
    print(f"the original: {type(error).__name__}: {error}")
else:
    raise SystemExit("changed: the original still computes")
PYTHON
