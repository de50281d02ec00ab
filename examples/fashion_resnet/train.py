"""Train the network of model.py from nothing: `python examples/fashion_resnet/train.py`.

Stochastic gradient descent with one cycle of the rate, on images that are mirrored at random.
Epochs, rate and weight decay were chosen on the validation split. One thread, some minutes; the
same seed gives the same weights on the same machine. The test split is read once, at the end.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent))

import model as example

BATCH = 128
EPOCHS = 12
PEAK_RATE = 0.2
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4

Tell = Callable[[int, float], None]
"""Is told the number of the step, from 1, and its loss."""


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Run on one thread from a fixed seed; then restore the caller's generator and threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Sums are ordered by thread, so the count decides the last bits.
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _mirrored(x: Tensor) -> Tensor:
    """Each image as it is, or from right to left."""
    turned = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(turned, x.flip(3), x)


def _joined(split: str) -> tuple[Tensor, Tensor]:
    images, labels = zip(*example.data(split), strict=True)
    return torch.cat(images), torch.cat(labels)


def _batches(count: int, epochs: int) -> list[Tensor]:
    """The rows of every step; what is left over at the end of an epoch is left out of it."""
    size = min(BATCH, count)
    rows = (torch.randperm(count)[: count // size * size] for _ in range(epochs))
    return [part for order in rows for part in order.split(size)]


def train(seed: int = 0, epochs: int = EPOCHS, tell: Tell = lambda step, loss: None) -> nn.Module:
    """Train on the train split alone; returns the network in eval mode."""
    x, y = _joined("train")
    with _reproducible(seed):
        # Convolutions of few channels are faster on the CPU with the channels last.
        model = example.FashionResNet().train().to(memory_format=torch.channels_last)
        settings = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": True}
        optimizer = torch.optim.SGD(model.parameters(), PEAK_RATE, **settings)
        batches = _batches(len(y), epochs)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_RATE, total_steps=len(batches), cycle_momentum=False
        )
        for step, rows in enumerate(batches, 1):
            images = _mirrored(x[rows]).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(images), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tell(step, loss.item())
    return model.to(memory_format=torch.contiguous_format).eval()


def main(arguments: list[str] | None = None) -> int:
    """Train, write the weights and print the accuracies; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train the Fashion-MNIST network from nothing.")
    parser.add_argument("--seed", type=int, default=0, help="0 is what build() reads")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, help="by default in the data folder, named by seed")
    options = parser.parse_args(arguments)
    begun = time.perf_counter()
    try:
        model = _shown(options.seed, options.epochs)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - begun
    path = example.save(model, options.out or example.weights(options.seed))
    valid, test = (example.accuracy(model, example.data(name)) for name in ("valid", "test"))
    settings = f"seed {options.seed}, {options.epochs} epochs, {seconds:.0f} s"
    print(f"accuracy: valid {valid:.4f}, test {test:.4f}  ({settings})")
    print(f"wrote {path}")
    return 0


def _shown(seed: int, epochs: int) -> nn.Module:
    """Train with a line of progress on the error stream."""
    total = epochs * max(1, sum(len(y) for _, y in example.data("train")) // BATCH)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=total)

        def tell(step: int, loss: float) -> None:
            progress.update(task, completed=step, description=f"training, loss {loss:.3f}")

        return train(seed, epochs, tell)


if __name__ == "__main__":
    sys.exit(main())
