#!/usr/bin/env bash
# ONNX Runtime's quant_pre_process loses the weights of what torch.onnx.export writes, if symbolic shapes are skipped.
#
# Seen with: onnxruntime 1.32.0, onnx 1.23.2, torch 2.13.0, onnxscript 0.7.2, Python 3.11
# Source: onnxruntime/quantization/shape_inference.py writes the optimized model into a folder of its own, and reads it
#   from there without the data that torch.onnx.export(dynamo=True) puts into a file beside the model
# Expected: quant_pre_process takes the file of the exporter, whose default is external data even for 224 numbers;
#   skip_symbolic_shape=True, advised where symbolic shape inference fails, only leaves that step out
# Seen: ValidationError, "should be stored in .../m.onnx.data, but it is not regular file"; with symbolic shapes, or with
#   external_data=False, it works
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  numpy torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 sympy
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile
import warnings

import torch
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

warnings.simplefilter("ignore")
model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)


def done(external, skip):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/m.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=external, verbose=False)
        try:
            quant_pre_process(path, f"{folder}/ready.onnx", skip_symbolic_shape=skip)
        except Exception as error:
            return f"{type(error).__name__}: {'not regular file' in str(error)}"
        return "done"


found = {(external, skip): done(external, skip) for external in (True, False) for skip in (True, False)}
for (external, skip), said in found.items():
    print(f"external_data={external}, skip_symbolic_shape={skip}: {said}")
wanted = {key: "done" for key in found} | {(True, True): "ValidationError: True"}
if found != wanted:
    raise SystemExit("changed: see which of them works now")
PYTHON
