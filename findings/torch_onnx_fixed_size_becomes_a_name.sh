#!/usr/bin/env bash
# A size that torch.export fixes is no size in the ONNX file but a name: the input has an axis called "5".
#
# Seen with: torch 2.13.0 (CPU), onnxscript 0.7.2, Python 3.11
# Source: torch/onnx/_internal/exporter/_core.py, _set_shape_type: `str(dim.node)` of every symbolic size becomes
#   its name, also where the symbol has been replaced by a number
# Expected: an LSTM makes torch.export fix the length that Dim.AUTO left open; the ExportedProgram refuses
#   other lengths, and the file has `dim_value: 5`
# Seen: `dim_param: "5"` at the input, `dim_value: 5` at the output: runtimes take any length, and what
#   follows the LSTM may be wrong or fail inside
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy \
  onnx==1.23.2 onnxscript==0.7.2
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn


class Tagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.out = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.cells(x)[0])


auto = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
exported = torch.export.export(Tagged().eval(), (torch.randn(2, 5, 4),), dynamic_shapes=auto)
graph = torch.onnx.export(exported, dynamo=True, verbose=False).model_proto.graph
(x,), (y,) = graph.input, graph.output
inner = [(axis.dim_param, axis.dim_value) for axis in x.type.tensor_type.shape.dim][1]
outer = [(axis.dim_param, axis.dim_value) for axis in y.type.tensor_type.shape.dim][1]
print("axis 1 of the input", inner, "of the output", outer)
try:
    exported.module()(torch.randn(2, 7, 4))
except Exception as error:
    print("the ExportedProgram:", str(error).splitlines()[0])
else:
    raise SystemExit("changed: the length is free")
if (inner, outer) != (("5", 0), ("", 5)):
    raise SystemExit("changed: see what the axes are now")
PYTHON
