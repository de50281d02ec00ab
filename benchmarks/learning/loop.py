"""What the loop of `recover` costs beside one that is written by hand: seconds of an epoch and peak
memory, LeNet-300-100 and a small convolutional network on MNIST, plain and under masks.

Both run in this process, one thread, an epoch of each in turns; the ratio of each round is what
counts. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from study import compiled, lenet_300_100, mnist
from torch import nn

from lissom.rewrite.journal import Epoch

BATCH, RATE = 128, 0.05


def small_cnn() -> nn.Sequential:
    """Two 3x3 convolutions and a linear layer."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1568, 10)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lambda: lenet_300_100(0),
    "cnn": small_cnn,
}
RECOVER = (
    f"recover tune {{ epochs = 1; batch = {BATCH}; optimizer = SGD(lr = {RATE}, momentum = 0.9) }}"
)
MASKED = "stage prune { once prune_weights(ratio = 90%, budget = 100%) } "


def by_hand(model: nn.Module) -> float:
    """Seconds of one epoch, with the validation that `recover` makes too."""
    x, y = (torch.cat(parts) for parts in zip(*mnist("train"), strict=True))
    valid = mnist("valid")
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    begun = time.perf_counter()
    model.train()
    for rows in torch.randperm(len(y)).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        sum(int((model(a).argmax(1) == b).sum()) for a, b in valid)
    return time.perf_counter() - begun


def by_recover(model: nn.Module, stage: str = "") -> float:
    """Seconds of one epoch."""
    events = compiled(stage + RECOVER, model).compiled.journal.of(Epoch)
    return events[-1].seconds


def rounds(name: str, count: int) -> Iterator[tuple[float, float, float]]:
    for _ in range(count):
        make = MODELS[name]
        yield by_hand(make()), by_recover(make()), by_recover(make(), MASKED)


def peak(name: str, which: str) -> float:
    """Peak memory of one epoch in a process of its own, MiB."""
    command = [sys.executable, __file__, "--alone", name, which]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(name: str, which: str) -> None:
    torch.set_num_threads(1)
    (by_hand if which == "hand" else by_recover)(MODELS[name]())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", nargs=2)
    given = parser.parse_args()
    if given.alone:
        return alone(*given.alone)
    torch.set_num_threads(1)
    for name in MODELS:
        found = list(rounds(name, given.rounds))
        hand, plain, masked = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = statistics.median(plain / hand for hand, plain, _ in found)
        under = statistics.median(masked / hand for hand, _, masked in found)
        print(f"{name}: by hand {hand:.2f} s, recover {plain:.2f} s ({ratio:.2f}x), ", end="")
        print(f"under masks {masked:.2f} s ({under:.2f}x)")
        both = [peak(name, which) for which in ("hand", "recover")]
        print(f"{name}: peak by hand {both[0]:.0f} MiB, recover {both[1]:.0f} MiB")
    return None


if __name__ == "__main__":
    main()
