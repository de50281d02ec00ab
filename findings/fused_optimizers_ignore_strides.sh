#!/usr/bin/env bash
# On the CPU, fused optimizers train the wrong numbers of a weight that is a slice, and write into what was cut off.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: aten/src/ATen/native/cpu/FusedAdamKernel.cpp, FusedSGDKernel.cpp and FusedAdagradKernel.cpp take data_ptr and
#   walk numel() numbers from there; the contiguous copy of the gradient is made and not used. Nothing compares strides
# Expected: the step of fused=False, as foreach=True takes it; or an error
# Seen: of a 3x4 weight cut from a 3x8 one, 4 of 12 numbers never move, 4 numbers of the part cut off do, and gradients
#   meet the wrong weights. A channels_last weight is trained wrong in the same way once its state went through
#   .contiguous(), as safetensors asks. A clone of the slice, and states with the strides of their weight, are right
#
# Installs the pinned package in a temporary folder and fails when the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

MAKERS = {
    "SGD": lambda weights, **options: torch.optim.SGD(weights, lr=0.1, momentum=0.9, **options),
    "Adagrad": lambda weights, **options: torch.optim.Adagrad(weights, lr=0.1, **options),
    "Adam": lambda weights, **options: torch.optim.Adam(weights, lr=0.1, **options),
    "AdamW": lambda weights, **options: torch.optim.AdamW(weights, lr=0.1, **options),
}
whole, x = torch.arange(24.0).reshape(3, 8) + 1, torch.eye(4)


def sliced(make, **options) -> tuple[torch.Tensor, int, int]:
    """Half the columns of a weight after one step; how many of them moved, and of the others."""
    base = whole.clone()
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(base[:, :4])
    optimizer = make(layer.parameters(), **options)
    layer(x).square().sum().backward()
    optimizer.step()
    moved = base != whole
    return layer.weight.detach().clone(), int(moved[:, :4].sum()), int(moved[:, 4:].sum())


def resumed(make, **options) -> torch.Tensor:
    """A channels_last weight after two steps, with the state made contiguous in between."""
    weight = nn.Parameter((torch.arange(24.0) + 1).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last))
    optimizer = make([weight], **options)
    for step in range(2):
        weight.grad = weight.detach().square() * (1 - 2 * step)
        optimizer.step()
        saved = optimizer.state_dict()
        saved["state"][0] = {name: value.contiguous() for name, value in saved["state"][0].items()}
        optimizer.load_state_dict(saved)
    return weight.detach()


right, wrong = {"fused": False, "foreach": True}, {"fused": True}
for name, make in MAKERS.items():
    wanted, all_moved, none_moved = sliced(make, **right)
    assert (all_moved, none_moved) == (12, 0)
    found, kept, cut = sliced(make, **wrong)
    state = (resumed(make, **wrong) - resumed(make, **right)).abs().max().item()
    apart = (found - wanted).abs().max().item()
    print(f"{name}: moved {kept} of 12, and {cut} cut off; off by {apart:.3f}, after resuming by {state:.3f}")
    if (kept, cut) != (8, 4) or apart < 0.05 or state < 0.01:
        raise SystemExit(f"changed: fused {name} heeds strides")
PYTHON
