#!/usr/bin/env bash
# `del model.graph.outputs[i]` in onnx_ir leaves the value marked as an output: its type is not written any more.
#
# Seen with: onnx_ir 1.1.0, onnx 1.23.2, Python 3.11
# Source: onnx_ir/_graph_containers.py: the list of outputs tracks append, pop, remove, clear and assignment, but
#   not __delitem__, which it inherits from UserList
# Expected: as after pop(): an inner value, whose type and shape stand in value_info
# Seen: is_graph_output() stays True; the written graph has neither an output nor a value_info for it, so
#   that onnx.utils.extract_model does not find it
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check onnx==1.23.2 onnx_ir==1.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import onnx_ir as ir
from onnx import TensorProto, helper


def model():
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xyz"}
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "g", [value["x"]], [value["z"], value["y"]])
    return ir.from_proto(helper.make_model(graph))


found = {}
for way in ("pop", "del"):
    made = model()
    y = made.graph.outputs[1]
    if way == "pop":
        made.graph.outputs.pop(1)
    else:
        del made.graph.outputs[1]
    written = [value.name for value in ir.to_proto(made).graph.value_info]
    found[way] = (y.is_graph_output(), written)
    print(way, "still an output:", found[way][0], "value_info:", written)
if found != {"pop": (False, ["y"]), "del": (True, [])}:
    raise SystemExit("changed: see what is written now")
PYTHON
