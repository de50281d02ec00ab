#!/usr/bin/env bash
# An exception inside fx.Interpreter.run imports torch._inductor, torch._dynamo and sympy.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/fx/interpreter.py: the handler of an error makes a structured trace of the graph
# Expected: an exception that ends a run early, as hooks do to stop, costs nothing more
# Seen: sympy and torch._dynamo are loaded afterwards, which takes seconds and tens of megabytes
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch import fx, nn


class Stop(Exception):
    pass


class UpToFirst(fx.Interpreter):
    def run_node(self, n):
        raise Stop


graph = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
before = {name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules}
try:
    UpToFirst(graph).run(torch.ones(2))
except Stop:
    pass
after = {name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules}
print("loaded before", sorted(before), "after", sorted(after))
if before == after:
    raise SystemExit("changed: nothing more is loaded")
PYTHON
