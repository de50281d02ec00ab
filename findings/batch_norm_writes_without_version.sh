#!/usr/bin/env bash
# Batch norm in training mode writes its running statistics and their version counters stay as they were.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: aten/src/ATen/native/Normalization.cpp updates the statistics through accessors; derivatives.yaml
#   and native_functions.yaml declare `native_batch_norm` as if it wrote to nothing, while
#   `_native_batch_norm_legit` declares `Tensor(a!) running_mean` and does not count either
# Expected: `tensor._version` goes up with each write in place, as for add_ and for instance_norm, which
#   is built on batch_norm and counts by itself; autograd and many caches ask it whether a tensor changed
# Seen: 0 before and 0 after, for all three ways to call it
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

x, rate = torch.arange(12.0).reshape(4, 3), (0.1, 1e-5)
WAYS = {
    "batch_norm": lambda m, v: F.batch_norm(x, m, v, training=True),
    "native_batch_norm": lambda m, v: torch.native_batch_norm(x, None, None, m, v, True, *rate),
    "_native_batch_norm_legit": lambda m, v: torch._native_batch_norm_legit(
        x, None, None, m, v, True, *rate
    ),
    "instance_norm": lambda m, v: F.instance_norm(x[..., None] * torch.ones(2), m, v, None, None, True),
    "add_": lambda m, v: m.add_(1),
}
found = {}
for name, run in WAYS.items():
    mean, variance = torch.zeros(3), torch.ones(3)
    run(mean, variance)
    found[name] = (mean._version, not torch.equal(mean, torch.zeros(3)))
    print(f"{name}: version {mean._version}, changed {found[name][1]}")
if not all(changed for _, changed in found.values()):
    raise SystemExit("changed: something was not written")
silent = sorted(name for name, (version, _) in found.items() if version == 0)
if silent != ["_native_batch_norm_legit", "batch_norm", "native_batch_norm"]:
    raise SystemExit(f"changed: the version stays for {silent}")
PYTHON
