"""A lottery ticket, and beside it the same mask over other first weights: `python
examples/learning/lottery_ticket.py`.

A network is trained, four of five weights are cut, and the others go back to where they began: does
the small network learn as well as the large one (Frankle and Carbin 2019, arXiv:1803.03635)? The
control draws new first weights under the same mask. One seed on small data shows how it is done,
not whether it is so; benchmarks/learning/lottery.py asks that on MNIST.
"""

from __future__ import annotations

import torch
from torch import nn

import lissom
from lissom.demo.model import accuracy, data, inputs, metrics

PROGRAM = """
pipeline ticket(seed: int = 0) {
  data train = sample("train", all)
  data valid = sample("valid", all)
  data calib = sample("train", 100)

  checkpoint start
  repeat share in [50%, 80%] {
    recover dense { epochs = 6; optimizer = Adam(lr = 0.002); batch = 50; seed = seed }
    stage prune { once prune_weights(ratio = share, budget = 100%) }
    rewind start
  }
  control redrawn {
    rewind drawn(seed = 1)
    recover tune { epochs = 6; optimizer = Adam(lr = 0.002); batch = 50; seed = seed }
  }
  recover ticket { epochs = 6; optimizer = Adam(lr = 0.002); batch = 50; seed = seed }
}
"""


def network() -> nn.Module:
    """64 pixels to 10 digits through two layers; nothing is trained yet."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(64, 10)).eval()


def main() -> None:
    torch.set_num_threads(1)  # the network is too small for more
    result = lissom.compile(network(), PROGRAM, inputs=inputs(), data=data, metrics=metrics)
    for line in result.trainings:
        print(line)
    for name, model in (("ticket", result.model), ("redrawn", result.controls["redrawn"])):
        print(f"{name}: accuracy {accuracy(model, data('test')):.3f} on test")


if __name__ == "__main__":
    main()
