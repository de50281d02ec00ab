#!/usr/bin/env bash
# After accelerate's prepare with mixed precision a GraphModule runs its old code for good, whatever recompile() says.
#
# Seen with: accelerate 1.15.0, torch 2.13.0 (CPU), Python 3.11
# Source: accelerate/accelerator.py, prepare_model, gives this one object a forward of its own, around the function that
#   it has then; utils/other.py, extract_model_from_parallel, takes the wrapper off and leaves that function on the
#   object. torch/fx/graph_module.py, recompile, sets forward of the class, which the one of the object hides
# Expected: unwrap_model gives the model to change and keep, and a changed graph runs once it is recompiled
# Seen: `code` shows the new graph, and calls run the old one; also with keep_fp32_wrapper=False. A deep copy
#   runs the new one, so a model and its copy differ. Right without mixed precision, and after `del model.forward`
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy accelerate==1.15.0
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import fx, nn


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * 2


def without_relu(model: fx.GraphModule) -> fx.GraphModule:
    """`model` with its relu cut out of the graph."""
    (relu,) = (node for node in model.graph.nodes if node.target is torch.relu)
    relu.replace_all_uses_with(relu.args[0])
    model.graph.erase_node(relu)
    model.recompile()
    assert "relu" not in model.code
    return model


x, plain = torch.tensor([-1.0]), without_relu(fx.symbolic_trace(Doubled()))
untouched = Accelerator(cpu=True).prepare(fx.symbolic_trace(Doubled()))
assert "forward" not in vars(untouched)
AcceleratorState._reset_state()
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
prepared = accelerator.prepare(fx.symbolic_trace(Doubled()))
changed = without_relu(accelerator.unwrap_model(prepared))
found = {"never prepared": plain(x), "prepared": prepared(x), "copy": copy.deepcopy(changed)(x)}
bare = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
found["unwrapped"] = bare(x)
del bare.forward
found["forward deleted"] = bare(x)
print("-1 doubled, relu cut out: " + ", ".join(f"{name} {y.item():g}" for name, y in found.items()))
right = {name for name, y in found.items() if y.item() == -2}
if right != {"never prepared", "copy", "forward deleted"}:
    raise SystemExit(f"changed: the new graph runs in {sorted(right)}")
PYTHON
