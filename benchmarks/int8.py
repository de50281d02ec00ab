"""Latency and error of networks in int8: lissom's result beside torch, torchao, ONNX Runtime and
OpenVINO.

    python benchmarks/int8.py [--models resnet18 resnet50 mobilenet_v2 vit_small]
        [--batches 1 16] [--threads 1 2] [--rounds 9] [--images 32] [--peers NAME ...] [--pruned]

Each contestant has a process of its own, lissom's loads the written artifact. Rounds are
interleaved and each starts with another contestant, whose turn is one run and then some timed ones
(their median). Ratios are taken round by round, and the table has their median; below it the
geometric means over all cells. Weights are random, batch norms hold statistics of random images,
and all contestants are calibrated on the same ones; linear layers of transformers find their
ranges as they run. Errors are relative L2 of the logits, from
those of float32. ONNX Runtime quantizes uint8 values and int8 weights per channel (QDQ); OpenVINO
through NNCF, float32 with INFERENCE_PRECISION_HINT=f32 and beside it what it runs by default.
`--pruned` adds lissom's result with half of the channels. Peers that are not installed are left
out. Needs torchvision.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from half import built, error, images, ratio
from int8_peers import EAGER, OURS, PEERS, PRUNED, Cell, Contestant
from torch import Tensor

import lissom
from lissom.rewrite.measure.processor import processor_name
from lissom.rewrite.runtime.layers import Int8Layer

PROGRAM = """
pipeline p {
  data calib = sample("train", all)
  stage open { fixpoint { fold_bn; drop_dropout; drop_identity } }
CUT
  stage snap {
    once watch; calibrate calib
    once int8_conv2d; once int8_linear; once int8_summand; once int8_average
  }
  stage join {
    fixpoint {
      int8_add; int8_relu; int8_relu6; int8_conv2d_to_codes; int8_linear_to_codes; merge_quantize
      drop_requantize; drop_relu_of_codes; drop_clamp_of_codes; move_codes; order_codes; join_codes
      pad_codes; interpolate_codes; max_pool2d_of_codes; average_codes; int8_hardswish
    }
  }
}
"""
TRANSFORMER = """
pipeline p {
  data calib = sample("train", all)
  stage open { fixpoint { drop_dropout; drop_identity; open_attention } }
  stage snap { once int8_linear_dynamic; once watch; calibrate calib; once int8_conv2d }
  stage join { fixpoint { merge_row_scale; merge_quantize_rows } }
}
"""
CUT = "  budget drift(outputs) <= 1000%\n  stage cut { once prune_l1(ratio = 50%) }"

PAUSE = 0.05
"""Seconds between contestants: the threads of one go on spinning where the next one computes."""


def written(name: str, folder: Path, count: int, *, pruned: bool = False) -> Any:
    """lissom's result, in a file; on stdout what it cost."""
    data = [(images(16, seed=4 + n), torch.zeros(16)) for n in range(count // 16)]
    program = TRANSFORMER if "vit" in name else PROGRAM.replace("CUT", CUT if pruned else "")
    model = built(name)
    torch.set_num_threads(1)
    begun = time.process_time()
    result = lissom.compile(model, program, inputs=(images(2, seed=3),), data=data)
    print(f"compiled in {time.process_time() - begun:.0f} CPU s, {result}", flush=True)
    result.save(folder / ("pruned" if pruned else "int8"))
    layers = [m for m in result.model.modules() if isinstance(m, Int8Layer)]
    print(f"{name}: {dict(Counter(layer.ran for layer in layers))}", flush=True)
    return result


# -- the table -------------------------------------------------------------------------------------


@contextmanager
def contestants(names: Sequence[str], cell: Cell) -> Iterator[dict[str, Contestant]]:
    """Those that can be set up; the others are told."""
    found: dict[str, Contestant] = {}
    try:
        for name in names:
            try:
                found[name] = Contestant(name, cell)
            except RuntimeError as failed:
                print(f"{name}: {failed}", flush=True)
        yield found
    finally:
        for one in found.values():
            one.close()


def raced(runs: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in (*names[shift:], *names[:shift]):
            time.sleep(PAUSE)
            seconds[name].append(runs[name].turn())
    return seconds


def heading(names: Sequence[str]) -> str:
    cells = ["model, batch, threads", *names]
    return f"| {' | '.join(cells)} |\n| :-- |{' --: |' * (len(cells) - 1)}"


def said(name: str, seconds: float, times: float, first: Tensor, wanted: Tensor | None) -> str:
    """Milliseconds, how many times as long as ours, and the error of what is coarser."""
    text = f"{1000 * seconds:.1f}" + ("" if name == OURS else f" ({times:.2f}x)")
    exact = wanted is None or "float32" in name or name == PRUNED
    return text if exact else f"{text}, {error(first, wanted):.3f}"


def row(cell: Cell, names: Sequence[str], rounds: int) -> tuple[str, dict[str, float]]:
    with contestants(names, cell) as runs:
        seconds = raced(runs, rounds)
    ratios = {other: ratio(seconds[other], seconds[OURS]) for other in runs}
    cells = [f"{cell.model}, {cell.batch}, {cell.threads}"]
    wanted = runs[EAGER].first if EAGER in runs else None
    for name in names:
        here = name in runs
        middle = statistics.median(seconds[name]) if here else math.nan
        cells.append(said(name, middle, ratios[name], runs[name].first, wanted) if here else "")
    return f"| {' | '.join(cells)} |", ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--pruned", action="store_true")
    asked = parser.parse_args()
    names = [OURS, *([PRUNED] if asked.pruned else []), EAGER]
    names += [name for name in asked.peers if name != EAGER]
    kept: dict[str, list[float]] = {}
    for model in asked.models:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for pruned in (False, True)[: 1 + asked.pruned]:
                written(model, folder, asked.images, pruned=pruned)
            for batch in asked.batches:
                for threads in asked.threads:
                    text, ratios = row(Cell(model, batch, threads, folder), names, asked.rounds)
                    print(text if kept else f"{heading(names)}\n{text}", flush=True)
                    for other, found in ratios.items():
                        kept.setdefault(other, []).append(found)
    for other, found in kept.items():
        print(f"{other} / {OURS}: {math.exp(statistics.fmean(map(math.log, found))):.2f}")
    print(f"{processor_name()}, torch {torch.__version__}, median of {asked.rounds} rounds")


if __name__ == "__main__":
    main()
