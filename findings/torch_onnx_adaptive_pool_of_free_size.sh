#!/usr/bin/env bash
# torch.onnx.export of adaptive_avg_pool2d with free sizes gives a file that pools otherwise at other sizes.
#
# Seen with: torch 2.13.0 and 2.10.0 (CPU), onnxscript 0.7.2, onnxruntime 1.32.0, Python 3.11
# Source: torch/_decomp/decompositions.py, adaptive_avg_pool2d: where the size of the example is a multiple of
#   that of the output it becomes avg_pool2d with windows of that quotient; nothing fixes the size or says so
# Expected: an error, fixed sizes, or the windows of the size that is given, as the ExportedProgram has them
# Seen: at 8x8 right; at 12x12 the ExportedProgram gives 2x2 and the file, whose height and width are
#   free, gives 3x3 without a word
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy \
  onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import onnxruntime
import torch
from torch import nn

model, small, large = nn.AdaptiveAvgPool2d(2), torch.randn(1, 3, 8, 8), torch.randn(1, 3, 12, 12)
free = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
exported = torch.export.export(model, (small,), dynamic_shapes=free)
file = torch.onnx.export(exported, dynamo=True, verbose=False).model_proto
session = onnxruntime.InferenceSession(file.SerializeToString())
print("input", session.get_inputs()[0].shape, "output", session.get_outputs()[0].shape)
found = []
for x in (small, large):
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].shape
    found.append((given, tuple(exported.module()(x).shape)))
    print(tuple(x.shape), "onnx", given, "torch.export", found[-1][1])
if found != [((1, 3, 2, 2), (1, 3, 2, 2)), ((1, 3, 3, 3), (1, 3, 2, 2))]:
    raise SystemExit("changed: see what is right now")
PYTHON
