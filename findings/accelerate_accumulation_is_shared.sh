#!/usr/bin/env bash
# A second Accelerator() turns off the gradient accumulation of the first.
#
# Seen with: accelerate 1.15.0, torch 2.13.0 (CPU), Python 3.11
# Source: accelerate/state.py, GradientState: all instances share one __dict__, and each new Accelerator writes its
#   number of steps there, also the default of 1 that nobody asked for; accumulate and backward read it there
# Expected: an Accelerator made with gradient_accumulation_steps=4 accumulates over 4 steps; another precision in a
#   second one raises, and so might this
# Seen: an Accelerator() made in a helper, to evaluate or to gather, makes the first one step after each batch, with
#   gradients that are not divided by 4: 8 updates where 2 were asked for. Nothing is said
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy accelerate==1.15.0
"$folder/venv/bin/python" - <<'PYTHON'
from itertools import pairwise

import torch
from accelerate import Accelerator
from torch import nn

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)


def trained() -> tuple[int, float]:
    """How often eight batches change one weight, and what it is then."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    layer, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=1.0))
    seen = [0.0]
    for _ in range(8):
        with accelerator.accumulate(layer):
            accelerator.backward(layer(torch.ones(1, 1)).sum())
            optimizer.step()
            optimizer.zero_grad()
        seen.append(layer.weight.item())
    return sum(a != b for a, b in pairwise(seen)), seen[-1]


alone = trained()
Accelerator(cpu=True)
beside = trained()
for name, (updates, weight) in {"alone": alone, "beside a second one": beside}.items():
    print(f"{name}: {updates} updates, weight {weight:g}")
if alone != (2, -2.0):
    raise SystemExit("changed: the first Accelerator does otherwise")
if beside != (8, -8.0):
    raise SystemExit("changed: the second Accelerator leaves the first alone")
try:
    Accelerator(cpu=True, mixed_precision="bf16")
except ValueError as error:
    print(f"another precision: {type(error).__name__}: {str(error)[:60]}...")
else:
    raise SystemExit("changed: another precision is taken in silence too")
PYTHON
