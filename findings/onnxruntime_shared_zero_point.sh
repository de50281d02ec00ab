#!/usr/bin/env bash
# With session.x64quantprecision=1 ONNX Runtime cannot load a model whose int8 weights share one zero point.
#
# Seen with: onnxruntime 1.32.0, onnx 1.23.2, Python 3.11
# Source: onnxruntime/core/optimizer/qdq_transformer/avx2_weight_s8_to_u8.cc makes the weights uint8, and a zero
#   point of 128 under a name that follows from that of the old one: a second layer adds it again
# Expected: the setting, which CPUs without VNNI need for exact sums of uint8 and int8, takes every model that
#   loads without it; exporters write equal zero points once
# Seen: FAIL "Attempt to replace the existing tensor"; with a zero point for each layer it loads. Without any
#   zero point, which the operator allows, Gemm stays a float layer
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def model(zeros):
    """Two integer Gemm layers; their zero points are called so."""
    tensors = {"s": np.float32(0.1), "t": np.full(4, 0.1, np.float32), "u": np.uint8(3)}
    tensors |= {name: np.zeros(4, np.int8) for name in zeros if name}
    nodes, x = [helper.make_node("QuantizeLinear", ["x", "s", "u"], ["q0"])], "q0"
    for i, zero in enumerate(zeros):
        tensors[f"w{i}"] = (np.arange(16) * 16 - 120).astype(np.int8).reshape(4, 4)
        nodes += [
            helper.make_node("DequantizeLinear", [x, "s", "u"], [f"x{i}"]),
            helper.make_node("DequantizeLinear", [f"w{i}", "t", zero], [f"d{i}"], axis=0),
            helper.make_node("Gemm", [f"x{i}", f"d{i}"], [f"y{i}"], transB=1),
            helper.make_node("QuantizeLinear", [f"y{i}", "s", "u"], [x := f"q{i + 1}"]),
        ]
    ends = [("x", TensorProto.FLOAT), (x, TensorProto.UINT8)]
    ends = [helper.make_tensor_value_info(name, kind, [2, 4]) for name, kind in ends]
    weights = [numpy_helper.from_array(np.asarray(a), name) for name, a in tensors.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def loaded(zeros, exact):
    """The kinds of nodes that ONNX Runtime makes of it, or why it makes none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", exact)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/m.onnx"
        try:
            onnxruntime.InferenceSession(model(zeros).SerializeToString(), options)
        except Exception as error:
            return str(error).strip().rpartition(": ")[2][-46:]
        return sorted({node.op_type for node in onnx.load(f"{folder}/m.onnx").graph.node})


ways = {"shared": ("z", "z"), "own": ("z0", "z1"), "none": ("", "")}
found = {(way, exact): loaded(zeros, exact) for way, zeros in ways.items() for exact in "01"}
for key, kinds in found.items():
    print(*key, kinds)
fused = ["QGemm", "QuantizeLinear"]
right = [found[key] == fused for key in (("shared", "0"), ("own", "0"), ("own", "1"))]
if not all(right) or "replace the existing" not in found["shared", "1"] or "Gemm" not in found["none", "0"]:
    raise SystemExit("changed: see what loads now")
PYTHON
