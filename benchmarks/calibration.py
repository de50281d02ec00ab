"""Memory and time that calibration takes: a low-rank rule on a network of 20 million parameters.

    python benchmarks/calibration.py [--rule "spatial_svd_conv(keep_macs = 50%, budget = 60%)"]
        [--images 8] [--height 96] [--width 128] [--threads 1]

Each figure comes from a process of its own: peak of its resident memory (`getrusage`), beside what
it held when the model and its data were there, and CPU seconds. What compiling adds is told as a
multiple of the model's weights. `low_rank_linear` has nothing to do in this network: its row is
what capturing and comparing cost alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from torch import nn

import lissom

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
HALVED = frozenset({2, 4, 7, 11})
"""Layers with a stride of 2."""

RULES = ("low_rank_linear(least = 1000)", "spatial_svd_conv(keep_macs = 50%, budget = 60%)")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for place, (wide, out) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
        stride = 2 if place in HALVED else 1
        layers += [nn.Conv2d(wide, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).eval()


def measured(rule: str, images: int, height: int, width: int, threads: int) -> dict[str, Any]:
    """Runs here: this process has done nothing else."""
    torch.set_num_threads(threads)
    model, x = network(), torch.randn(images, 3, height, width)
    with torch.no_grad():
        model(x[:1])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    held, begun = _resident(), time.process_time()
    result = lissom.compile(
        model,
        f'pipeline p {{ data calib = sample("train", {images}); budget drift(outputs) <= 1000%;'
        f" stage s {{ once {rule} }} }}",
        inputs=(x[:2],),
        data=lambda split: [(x, torch.zeros(images, dtype=torch.long))],
    )
    return {
        "sites": len(result.applied),
        "seconds": time.process_time() - begun,
        "weights": weights,
        "held": held,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", action="append")
    for name, default in (("images", 8), ("height", 96), ("width", 128), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sizes = asked.images, asked.height, asked.width, asked.threads
    if asked.here:
        print(json.dumps(measured(asked.rule[0], *sizes)))
        return
    for rule in asked.rule or RULES:
        _show(rule, sizes)


def _show(rule: str, sizes: tuple[int, ...]) -> None:
    names = ("--images", "--height", "--width", "--threads")
    given = [word for pair in zip(names, map(str, sizes), strict=True) for word in pair]
    command = [sys.executable, __file__, "--here", "--rule", rule, *given]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    added = (found["peak"] - found["held"]) / found["weights"]
    print(
        f"{rule}: {found['sites']} sites, {found['seconds']:.1f} CPU s,"
        f" {found['weights'] / 1e6:.0f} MB of weights, peak {found['peak'] / 1e6:.0f} MB:"
        f" {found['held'] / 1e6:.0f} MB before compiling and {added:.2f} times the weights"
    )


if __name__ == "__main__":
    main()
