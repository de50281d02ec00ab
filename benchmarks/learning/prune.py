"""Prune, recover, check: LeNet-300-100 on MNIST with 12 times fewer weights (Han et al. 2015,
arXiv:1506.02626: 1.64 % error becomes 1.59 % with 8 % of the weights).

As in that paper the last layer, which has a thousand weights, keeps more of them than the others.
Beside it: the dense network with as many epochs, all weights cut at once with as many epochs, and a
mask that is drawn. The loop ends by itself where the budget breaks.
"""

from __future__ import annotations

from functools import cache

import torch
from study import Row, compiled, lenet_300_100, measured, nonzero, study
from torch import Tensor, nn

DENSE = """
  recover dense {
    epochs = 10
    optimizer = SGD(lr = 0.05, momentum = 0.9, weight_decay = 0.0005)
    schedule = cosine()
    seed = SEED
  }
"""
TUNE = """
    optimizer = SGD(lr = 0.05, momentum = 0.9, weight_decay = 0.0005)
    schedule = cosine()
    seed = SEED
"""
LOOP = """
  budget drop(accuracy) <= 0.1% on valid
  repeat share in [50%, 75%, 85%, 90%, 91.92%] {
    stage prune {
      once prune_weights(ratio = share, budget = 100%) at "[13]"
      once prune_weights(ratio = share - 20%, budget = 100%) at "5"
    }
    recover tune { epochs = 10; TUNE }
  }
"""
ONCE = """
  stage prune {
    once RULE(ratio = 91.92%, budget = 100%) at "[13]"
    once RULE(ratio = 71.92%, budget = 100%) at "5"
  }
  recover tune { epochs = 50; TUNE }
"""
LONGER = "recover tune { epochs = 50; TUNE }"
RANDOM = """
extern fn without_some(w: f[...], ratio: frac) -> f[...] pure

approx rule prune_drawn(ratio: frac, budget: frac) {
  match param w of linear
  let { less = without_some(w, ratio) }
  perturb { w := less }
  rewrite { w := less }
  train { w := w * initial(mask(w)) }
  ensure { error(outputs) <= budget on calib }
}
"""


def without_some(w: Tensor, ratio: float) -> Tensor:
    """`w` with this share of its numbers 0, whichever they are."""
    order = torch.randperm(w.numel(), generator=torch.Generator().manual_seed(w.numel()))
    gone = torch.zeros(w.numel(), dtype=torch.bool)
    gone[order[: int(ratio * w.numel())]] = True
    return w.masked_fill(gone.reshape(w.shape), 0.0)


@cache
def dense(seed: int) -> nn.Module:
    """The trained network that everything begins from."""
    return compiled(DENSE.replace("SEED", str(seed)), lenet_300_100(seed)).model


def row(model: nn.Module) -> Row:
    return {**measured(model), "weights": nonzero(model), "fewer": 266_200 / nonzero(model)}


def arm(body: str, rules: str = "") -> object:
    def run(seed: int) -> Row:
        text = body.replace("TUNE", TUNE).replace("SEED", str(seed))
        functions = {"without_some": without_some}
        return row(compiled(text, dense(seed), rules=rules, functions=functions).model)

    return run


ARMS = {
    "dense": lambda seed: row(dense(seed)),
    "dense, as many epochs": arm(LONGER),
    "loop": arm(LOOP),
    "at once": arm(ONCE.replace("RULE", "prune_weights")),
    "drawn mask": arm(ONCE.replace("RULE", "prune_drawn"), RANDOM),
}

if __name__ == "__main__":
    study("prune", ARMS, __doc__)
