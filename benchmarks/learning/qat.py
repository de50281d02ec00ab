"""Weights of four bits on Fashion-MNIST: the residual network of examples/fashion_resnet with half
of its channels (8, 16, 32), trained here. Rounded afterwards, and trained on the grid. Beside it,
the float network with as many epochs more.
"""

from __future__ import annotations

from functools import cache

import torch
from study import Row, _module, compiled, fashion, measured, study
from torch import nn

TRAIN = "schedule = one_cycle(); seed = SEED; batch = 200; augment = shift(2) + flip()"
FLOAT = (
    f"recover float {{ epochs = 5; optimizer = AdamW(lr = 0.006, weight_decay = 0.01); {TRAIN} }}"
)
TUNE = "schedule = cosine(); seed = SEED; batch = 200; augment = shift(2) + flip()"
TUNED = f"recover tune {{ epochs = 2; optimizer = AdamW(lr = 0.001); {TUNE} }}"
GRID = "stage grid { once grid_weights(bits = BITS, budget = 100%) }"


@cache
def trained(seed: int) -> nn.Module:
    """The float network, batch norms folded: weights are what is rounded."""
    module = _module("fashion_resnet")
    module.WIDTHS = (8, 16, 32)
    torch.manual_seed(seed)
    model = module.FashionResNet().eval()
    text = FLOAT.replace("SEED", str(seed))
    return compiled(text, model, fashion).model


def run(body: str, bits: int = 4) -> object:
    def one(seed: int) -> Row:
        text = body.replace("SEED", str(seed)).replace("BITS", str(bits))
        model = compiled(text, trained(seed), fashion).model if body else trained(seed)
        values = [
            len(row.unique()) for w in model.parameters() if w.dim() > 1 for row in w.detach()
        ]
        return {**measured(model, fashion), "values": max(values)}

    return one


ARMS = {
    "float": run(""),
    "float, more epochs": run(TUNED),
    "rounded, 4 bits": run(GRID),
    "trained, 4 bits": run(f"{GRID} {TUNED}"),
    "rounded, 3 bits": run(GRID, 3),
    "trained, 3 bits": run(f"{GRID} {TUNED}", 3),
}

if __name__ == "__main__":
    study("qat", ARMS, __doc__)
