#!/usr/bin/env bash
# Tensors that safetensors loads from a file lie at any multiple of their element's size: they equal their
# clones, and a linear layer gives other last bits with them than with the clones.
#
# Seen with: torch 2.13.0 (CPU), safetensors 0.8.0, Python 3.11, x86 with AVX-512
# Source: a safetensors file pads its header alone; `load_file` and `safe_open(...).get_tensor` hand out views of
#   the mapped file where the tensors lie in it. Memory that torch allocates on the CPU starts at multiples of
#   64 bytes, and vectorised products sum in an order that follows the alignment.
# Expected: a tensor read from a file computes as its copy does, bit for bit: `torch.equal` says that they are equal
# Seen: of 40 products of vectors with matrices 30x30 more than half differ in a last bit. A training that goes on
#   from a state dict read this way leaves its path: `Optimizer.load_state_dict` keeps the tensors that it is
#   given, and LBFGS takes products of its remembered directions
#
# Installs the pinned packages in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 safetensors==0.8.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
save_file({f"t{n}": torch.randn(1000 + n, generator=generator) for n in range(40)}, "t.safetensors")
loaded = list(load_file("t.safetensors").values())


def product(t: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(t[:30], t[:900].reshape(30, 30))


places = sorted({t.data_ptr() % 64 for t in loaded})
equal = all(torch.equal(t, t.clone()) for t in loaded)
differ = sum(not torch.equal(product(t), product(t.clone())) for t in loaded)
again = sum(not torch.equal(product(t.clone()), product(t.clone())) for t in loaded)
print(f"places modulo 64: {places}")
print(f"equal to their clones: {equal}; products that differ: {differ} of 40, clones among them: {again}")
kept = torch.optim.SGD([weight := torch.nn.Parameter(torch.zeros(1001))], lr=0.1, momentum=0.9)
state = {"state": {0: {"momentum_buffer": loaded[1]}}, "param_groups": kept.state_dict()["param_groups"]}
kept.load_state_dict(state)
same = kept.state[weight]["momentum_buffer"].data_ptr() == loaded[1].data_ptr()
print(f"an optimizer keeps the tensor that it is given: {same}")
if not (equal and differ > 0 and again == 0 and len(places) > 4 and same):
    raise SystemExit("changed: tensors from a file compute as their clones do")
PYTHON
