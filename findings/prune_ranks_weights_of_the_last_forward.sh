#!/usr/bin/env bash
# torch.nn.utils.prune ranks the weights that the last forward pass used, not those that the module has.
#
# Seen with: torch 2.13.0 (CPU), Python 3.11
# Source: torch/nn/utils/prune.py: importance is getattr(module, "weight"), for apply and for global_unstructured alike.
#   Of a pruned module that is no parameter but the product that the hook before the last forward left there
# Expected: "if unspecified or None, the parameter will be used in its place": the weights as loaded or trained
# Seen: pruning further after load_state_dict ranks by the numbers from before loading (those of a new model are
#   random), here with the largest weights removed; after optimizer.step by those from before the step; after functional_call
#   by those of the caller, which stay in `weight`. One forward pass, or importance_scores, cures it
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
from torch.nn.utils import prune

GIVEN, TRUE = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]])
x = torch.ones(1, 4)


def loaded(layer: nn.Module) -> None:
    layer.load_state_dict({"weight_orig": TRUE, "weight_mask": torch.ones(1, 4)})


def stepped(layer: nn.Module) -> None:
    layer(x)
    layer.weight_orig.grad = GIVEN - TRUE
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


def called(layer: nn.Module) -> None:
    loaded(layer)
    torch.func.functional_call(layer, {"weight_orig": GIVEN}, (x,))


def forward(layer: nn.Module) -> None:
    loaded(layer)
    layer(x)


def kept(change, cut) -> list[int]:
    """Which of four weights are left when, after `change`, `cut` removes what it finds smallest."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight = nn.Parameter(GIVEN.clone())
    prune.identity(layer, "weight")
    change(layer)
    assert torch.equal(layer.weight_orig, TRUE)
    cut(layer)
    return layer.weight_mask[0].nonzero().flatten().tolist()


CUTS = {
    "l1_unstructured": lambda layer: prune.l1_unstructured(layer, "weight", amount=2),
    "global_unstructured": lambda layer: prune.global_unstructured(
        [(layer, "weight")], prune.L1Unstructured, amount=2
    ),
}
for name, cut in CUTS.items():
    found = {change.__name__: kept(change, cut) for change in (loaded, stepped, called, forward)}
    print(f"{name} of weights 4, 3, 2, 1 keeps {found}")
    if found.pop("forward") != [0, 1]:
        raise SystemExit("changed: wrong even after a forward pass")
    if any(left != [2, 3] for left in found.values()):
        raise SystemExit("changed: the weights of the module count")
PYTHON
