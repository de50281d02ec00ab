"""Depthwise separable blocks in the place of convolutions, and a teacher that brings accuracy back:
`python examples/learning/recover_separable.py`.

A digit reader is trained on the scans that scikit-learn carries. Its wide convolutions become the
blocks of MobileNet, with a sixth of the multiplications in all; the network that it was teaches it.
Beside it the same blocks are drawn anew and trained as long without a teacher.
"""

from __future__ import annotations

import torch

import lissom
from lissom.demo.model import accuracy, data, inputs, metrics, train

PROGRAM = """
pipeline separable {
  data train = sample("train", all)
  data valid = sample("valid", all)
  data calib = sample("train", 200)
  budget drop(accuracy) <= 2% on valid

  stage blocks {
    once separable_block, clip_relu
  }
  control anew {
    rewind drawn(seed = 1)
    recover tune { SETTINGS }
  }
  recover tune {
    SETTINGS
    teacher = original
    loss = kl(temperature = 4) + task()
  }
  stage clean {
    fixpoint { drop_dropout; fold_bn }
  }
}
""".replace(
    "SETTINGS", "epochs = 6; batch = 50; optimizer = AdamW(lr = 0.003); schedule = cosine()"
)


def main() -> None:
    torch.set_num_threads(1)  # the network is too small for more
    dense = train()
    result = lissom.compile(dense, PROGRAM, inputs=inputs(), data=data, metrics=metrics)
    for line in result.trainings:
        print(line)
    for name, model, costs in (
        ("dense", dense, result.before),
        ("separable", result.model, result.after),
    ):
        found = accuracy(model, data("test"))
        print(f"{name}: {costs.macs:,} MACs, accuracy {found:.3f} on test")


if __name__ == "__main__":
    main()
