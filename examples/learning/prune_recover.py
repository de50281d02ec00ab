"""Prune, recover, check, and again, as long as accuracy holds:
`python examples/learning/prune_recover.py`.

A digit reader is trained on the scans that scikit-learn carries. Then rounds cut more and more of
its weights and train the rest; zeros stay zeros. The first round after which validation accuracy is
more than one and a half points below the dense network's is taken back, and ends it.
"""

from __future__ import annotations

import torch
from torch import nn

import lissom
from lissom.demo.model import accuracy, data, inputs, metrics, train

PROGRAM = """
pipeline shrink {
  data train = sample("train", all)
  data valid = sample("valid", all)
  data calib = sample("train", 100)
  budget drop(accuracy) <= 1.5% on valid

  repeat share in [50%, 75%, 87%, 93%, 96%] {
    stage prune {
      once prune_weights(ratio = share, budget = 100%) at "conv[23]"
      once prune_weights(ratio = share, budget = 100%) at "hidden"
    }
    recover tune {
      epochs = 8
      batch = 50
      optimizer = AdamW(lr = 0.001)
      schedule = cosine()
    }
  }
  stage clean {
    fixpoint { drop_dropout; fold_bn }
  }
}
"""


def zeros(model: nn.Module) -> float:
    """The share of zeros among the weights of all layers."""
    held = [w for w in model.parameters() if w.dim() > 1]
    return sum(int((w == 0).sum()) for w in held) / sum(w.numel() for w in held)


def main() -> None:
    torch.set_num_threads(1)  # the network is too small for more
    dense = train()
    result = lissom.compile(dense, PROGRAM, inputs=inputs(), data=data, metrics=metrics)
    for line in result.trainings:
        print(line)
    for name, model in (("dense", dense), ("pruned", result.model)):
        found = accuracy(model, data("test"))
        print(f"{name}: {100 * zeros(model):.1f} % zeros, accuracy {found:.3f} on test")


if __name__ == "__main__":
    main()
