"""Latency and error of networks in bfloat16: lissom's result beside the model in float32, and
beside `model.bfloat16()` with folded batch norms and channels last.

    python benchmarks/half.py [--models resnet18 resnet50 vit_small] [--batches 1 16]
        [--threads 1 2] [--half bfloat16] [--rounds 15] [--compiled]

Rounds are interleaved and each starts with another contestant; ratios are taken round by round, and
the table has their median. One thread is timed in CPU seconds, which a busy machine disturbs
little, several in seconds. Weights are random, batch norms hold statistics of random images. Errors
are relative L2 of the logits, from those of float32. Needs torchvision.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchvision_cpu
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import lissom
from lissom.rewrite.measure.processor import processor_name

PROGRAM = """
pipeline p {
  data calib = sample("train", 4)
  stage open { fixpoint { fold_bn; drop_dropout; drop_identity; open_attention } }
  stage half {
    once half_layer(half = "HALF"); once half_attention(half = "HALF")
    once half_pair(half = "HALF"); once half_activation(half = "HALF")
  }
  stage sink { fixpoint { widen_later; widen_after_relu6; drop_widening } }
}
"""

OURS, EAGER, LAST, PEER, COMPILED = (
    "lissom", "float32", "float32, channels last", "`.bfloat16()`", "torch.compile, float32"
)  # fmt: skip
Run = Callable[[], Tensor]


def built(name: str) -> nn.Module:
    """A network of torchvision, random; ViT of the width of DeiT-S (Touvron et al. 2021)."""
    torchvision_cpu.prepare()
    from torchvision import models

    torch.manual_seed(0)
    if name == "vit_small":
        sizes = {"num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}
        model: nn.Module = models.VisionTransformer(image_size=224, patch_size=16, **sizes)
        nn.init.normal_(model.heads.head.weight, std=0.02)  # type: ignore[union-attr]
        return model.eval()
    return settled(getattr(models, name)(weights=None))


def settled(model: nn.Module) -> nn.Module:
    """The model in eval mode, its batch norms with statistics of random images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    # Branches as strong as their identity make fifty blocks chaotic: any rounding error grows.
    for block in (module for module in model.modules() if hasattr(module, "downsample")):
        (block.bn3 if hasattr(block, "bn3") else block.bn2).weight.data *= 0.25
    with torch.no_grad():
        model.train()(images(8, seed=2))
    return model.eval()


def images(count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 224, 224, generator=generator)


def halved(model: nn.Module, half: str) -> Any:
    """lissom's result for the model in channels last."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images(2, seed=3).contiguous(memory_format=torch.channels_last)
    data = [(images(4, seed=4), torch.zeros(4))]
    return lissom.compile(model, PROGRAM.replace("HALF", half), inputs=(x,), data=data)


def contestants(model: nn.Module, ours: nn.Module, x: Tensor, half: str) -> dict[str, Run]:
    last = x.contiguous(memory_format=torch.channels_last)
    wide = copy.deepcopy(model).to(memory_format=torch.channels_last)
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    peer = fuse(model) if has_norms else copy.deepcopy(model)
    kind = getattr(torch, half)
    peer = peer.to(memory_format=torch.channels_last).to(kind)
    return {
        OURS: lambda: ours(last),
        EAGER: lambda: model(x),
        LAST: lambda: wide(last),
        PEER.replace("bfloat16", half): lambda: peer(last.to(kind)).float(),
    }


def raced(
    runs: Mapping[str, Run], rounds: int, pause: float | None = None
) -> dict[str, list[float]]:
    """Seconds of each, round by round. pause: seconds in which the threads of the one before stop
    spinning; then each runs once before it is timed.
    """
    names = list(runs)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-2, rounds):
        shift = number % len(names)
        for name in (*names[shift:], *names[:shift]):
            begun = clock()
            runs[name]()
            if number >= 0:
                seconds[name].append(clock() - begun)
    return seconds


def ratio(other: Sequence[float], own: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(other, own, strict=True))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def row(name: str, x: Tensor, runs: Mapping[str, Run], rounds: int) -> tuple[str, dict[str, float]]:
    seconds, wanted = raced(runs, rounds), runs[EAGER]()
    cells = [f"{name}, {len(x)}, {torch.get_num_threads()}"]
    ratios = {other: ratio(seconds[other], seconds[OURS]) for other in runs if other != OURS}
    cells += [f"{1000 * statistics.median(seconds[one]):.1f}" for one in runs]
    cells += [f"{found:.2f}" for found in ratios.values()]
    halves = [one for one in runs if "float32" not in one]
    cells += [f"{error(runs[one](), wanted):.4f}" for one in halves]
    return f"| {' | '.join(cells)} |", ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "vit_small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--half", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compiled", action="store_true")
    asked = parser.parse_args()
    kept: dict[str, list[float]] = {}
    for name in asked.models:
        model = built(name)
        result = halved(model, asked.half)
        print(f"{name}: {result.before.bytes:,} bytes, {result.after.bytes:,} after", flush=True)
        for batch in asked.batches:
            for threads in asked.threads:
                torch.set_num_threads(threads)
                with torch.inference_mode():
                    x = images(batch)
                    runs = contestants(model, result.model, x, asked.half)
                    if asked.compiled:
                        torch.compiler.reset()
                        compiled = torch.compile(copy.deepcopy(model))
                        runs[COMPILED] = lambda compiled=compiled, x=x: compiled(x)
                    if not kept:
                        print(heading(list(runs)))
                    said, ratios = row(name, x, runs, asked.rounds)
                print(said, flush=True)
                for other, found in ratios.items():
                    kept.setdefault(other, []).append(found)
    for other, found in kept.items():
        print(f"{other} / lissom: {math.exp(statistics.fmean(map(math.log, found))):.2f}")
    print(f"{processor_name()}, torch {torch.__version__}, median of {asked.rounds} rounds")


def heading(names: Sequence[str]) -> str:
    cells = ["model, batch, threads", *(f"{name}, ms" for name in names)]
    cells += [f"{name} / lissom" for name in names[1:]]
    cells += [f"error of {name}" for name in names if "float32" not in name]
    return f"| {' | '.join(cells)} |\n| :-- |{' --: |' * (len(cells) - 1)}"


if __name__ == "__main__":
    main()
