"""Easy digits leave early: `python examples/exits/early_exit.py`.

A network reads the scans that scikit-learn carries. A head behind its first stage learns along, and
digits of which it is sure leave there; how sure is enough comes from validation data, so that
96 % are still read. Beside it the same number of digits leaves at random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lissom
from lissom.demo.model import accuracy, data, metrics
from lissom.rewrite.runtime.exits import EarlyExit

PROGRAM = """
pipeline early {
  data train = sample("train", all)
  data valid = sample("valid", all)

  recover trunk {
    epochs = 12; batch = 50; optimizer = AdamW(lr = 0.003); schedule = cosine()
  }
  stage exits {
    once exit_head(grid = 4) at "first"
  }
  recover heads {
    epochs = 12; batch = 50; optimizer = AdamW(lr = 0.003); schedule = cosine()
  }
  exit on valid until accuracy >= 96%
}
"""


def network() -> nn.Sequential:
    """Digits [N, 1, 8, 8] to logits [N, 10]: two stages and a classifier."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    third = nn.Sequential(nn.Flatten(), nn.Linear(256, 128), nn.ReLU())
    parts = {"first": first, "second": second, "third": third, "last": nn.Linear(128, 10)}
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return model.eval()


def main() -> None:
    torch.set_num_threads(1)  # the network is too small for more
    x: Tensor = data("train")[0][0][:2]
    result = lissom.compile(network(), PROGRAM, inputs=(x,), data=data, metrics=metrics)
    for line in result.trainings:
        print(line)
    model, found = result.model, result.exits
    assert isinstance(model, EarlyExit)
    assert found is not None
    for row in found.rows:
        print(f"{row.name}: {row.share:.0%} of the validation digits, {row.macs / 2:,.0f} MACs")

    test = data("test")
    with torch.no_grad():
        _, exits = model(torch.cat([x for x, _ in test]), return_exit=True)
    share = float((exits == 1).float().mean())
    costs = [row.macs / 2 for row in found.rows]
    print(
        f"test: {share:.0%} leave, {share * costs[0] + (1 - share) * costs[1]:,.0f} MACs on average"
    )
    print(f"test: accuracy {accuracy(model, test):.3f}")
    alone = []
    for model.depth in (1, 2):
        alone.append(accuracy(model, test))
    model.depth = None
    print(f"all at the exit {alone[0]:.3f}, none {alone[1]:.3f}")
    print(f"as many at random: {share * alone[0] + (1 - share) * alone[1]:.3f}")


if __name__ == "__main__":
    main()
