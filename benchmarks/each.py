"""What `each` costs beside `once`: CPU seconds over the number of sites.

    python benchmarks/each.py [--sizes 10 20 40 80] [--orders saving macs sensitivity]
        [--models vit_tiny_patch16_224] [--depths 12] [--rules low_rank_linear prune_l1]
        [--samples 32] [--share 70] [--rounds 1] [--threads 1]

Stacks of equal linear layers with an activation between them, in plain torch; chains of
convolutions, whose dimensions are cut; and transformers of timm by name, with so many blocks, where
it is installed: their layers are factored, and their dimensions cut. `once` applies the rule at
every site, `each` at the best ones until the model has `--share` percent of its parameters. Both
go through `compile`; time runs from when it asks for data, so that capturing is left out. Pairs
of runs are interleaved, medians are told.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import torch
from measure import exponent
from torch import Tensor, nn

import lissom

WIDTH = 256


@dataclass(frozen=True)
class Task:
    """A family of models, an example and data for it, and a rule that applies at all sites."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rule: str
    budget: str = ""


def stack(depth: int) -> nn.Module:
    pairs = ((nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(depth))
    return nn.Sequential(*(layer for pair in pairs for layer in pair))


def convolutions(depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


LOW_RANK = ("low_rank_linear(keep_params = 50%, budget = 100%)",)
CUTS = ("prune_l1(ratio = 25%)", "budget params(model) <= 100%;")


def tasks(sizes: list[int], models: list[str], depths: list[int]) -> Iterator[Task]:
    for depth in sizes:
        build = lambda n=depth: stack(n)  # noqa: E731
        yield Task(f"{depth} linear layers", build, (64, WIDTH), *LOW_RANK)
    for depth in sizes:
        build = lambda n=depth - 1: convolutions(n)  # noqa: E731
        yield Task(f"{depth} convolutions", build, (3, 16, 16), *CUTS)
    for name in models if importlib.util.find_spec("timm") else ():
        for rule, depth in product((LOW_RANK, CUTS), depths):
            build = lambda n=name, d=depth: _of_timm(n, d)  # noqa: E731
            yield Task(f"{depth} blocks of {name}", build, (3, 224, 224), *rule)


def _of_timm(name: str, depth: int) -> nn.Module:
    import torchvision_cpu

    torchvision_cpu.prepare()
    import timm

    return timm.create_model(name, pretrained=False, depth=depth)


@dataclass
class Run:
    seconds: float
    sites: int


def compiled(task: Task, model: nn.Module, step: str, samples: int) -> Run:
    x = torch.randn(samples, *task.shape, generator=torch.Generator().manual_seed(1))
    head = f'data calib = sample("train", {samples}); {task.budget}'
    text = f"pipeline p {{ {head} stage s {{ {step} }} }}"
    begun = []

    def data(split: str) -> list[tuple[Tensor, Tensor]]:
        begun.append(time.process_time())
        return [(x, torch.zeros(samples))]

    result = lissom.compile(model, text, inputs=(x[:2],), data=data)
    return Run(time.process_time() - begun[-1], len(result.applied))


def measured(task: Task, order: str, asked: Any) -> tuple[Run, Run]:
    """`once` and `each`."""
    torch.manual_seed(0)
    model = task.build().eval()
    goal = f"order by {order} until params(model) <= {asked.share}%"
    steps = f"once {task.rule}", f"each {task.rule} {goal}"
    rounds = [
        [compiled(task, model, step, asked.samples) for step in steps] for _ in range(asked.rounds)
    ]
    once, each = (median(r[at].seconds for r in rounds) for at in (0, 1))
    return Run(once, rounds[0][0].sites), Run(each, rounds[0][1].sites)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 20, 40, 80])
    parser.add_argument("--orders", nargs="*", default=["saving", "macs", "sensitivity"])
    parser.add_argument("--models", nargs="*", default=["vit_tiny_patch16_224"])
    parser.add_argument("--depths", type=int, nargs="*", default=[12])
    parser.add_argument("--rules", nargs="*", default=["low_rank_linear", "prune_l1"])
    for name, default in (("samples", 32), ("share", 70), ("rounds", 1), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warm = next(tasks([2], [], []))  # imports, and torch's own first times
    compiled(warm, warm.build().eval(), f"once {warm.rule}", 2)
    print("| model | rule | order by | `once`: sites | CPU s | `each`: sites | CPU s | ratio |")
    print("| :-- | :-- | :-- | --: | --: | --: | --: | --: |")
    growth: dict[tuple[str, str], dict[int, float]] = {}
    for task in tasks(asked.sizes, asked.models, asked.depths):
        rule = task.rule.partition("(")[0]
        for order in asked.orders if rule in asked.rules else ():
            once, each = measured(task, order, asked)
            row = f"{once.sites} | {once.seconds:.2f} | {each.sites} | {each.seconds:.2f}"
            ratio = each.seconds / once.seconds
            print(f"| {task.name} | {rule} | {order} | {row} | {ratio:.2f} |", flush=True)
            kind = f"{task.name.lstrip('0123456789 ')}, {rule}"
            growth.setdefault((kind, order), {})[once.sites] = each.seconds
    for (kind, order), seconds in growth.items():
        if not math.isnan(slope := exponent(seconds)):
            print(f"{kind}, {order}: `each` grows as sites^{slope:.2f}")


if __name__ == "__main__":
    main()
