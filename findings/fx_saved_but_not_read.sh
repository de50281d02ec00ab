#!/usr/bin/env bash
# torch.save writes a GraphModule that torch.load cannot read: its graph calls `len`.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/fx/graph_module.py, _deserialize_graph_module: a pickle holds the generated code, and
#   reading it traces that code anew with proxies, on which `len`, `is` or `math.sqrt` run at once
# Expected: a module that runs, lints and is saved without a word can be read again
# Seen: RuntimeError 'len' is not supported in symbolic tracing; with node.meta["is_wrapped"] = True,
#   which is what torch.fx.wrap leaves behind, the same graph is read back and computes the same
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import io

import torch
from torch import fx, nn


def saved_and_read(wrapped):
    graph = fx.Graph()
    xs = graph.placeholder("xs")
    count = graph.call_function(len, (xs,))
    if wrapped:
        count.meta["is_wrapped"] = True
    graph.output(count)
    module = fx.GraphModule(nn.Module(), graph)
    module.graph.lint()
    assert module([1, 2, 3]) == 3
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)([1, 2, 3])


try:
    raise SystemExit(f"changed: it is read back and gives {saved_and_read(False)}")
except RuntimeError as error:
    print("as it is:", str(error).splitlines()[0])
print("marked as wrapped:", saved_and_read(True))
PYTHON
