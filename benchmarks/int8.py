"""Latency and error of networks in int8: lissom's result beside torch, ONNX Runtime and OpenVINO.

    python benchmarks/int8.py [--models resnet18 resnet50 mobilenet_v2 vit_small]
        [--batches 1 16] [--threads 1 2] [--rounds 15] [--images 32] [--compiled]

Rounds are interleaved and each starts with another contestant, which rests and runs once before it
is timed: threads of the one before still spin. Ratios are taken round by round, and
the table has their median; below it the geometric means over all cells. Weights are random, batch
norms hold statistics of random images, and all contestants are calibrated on the same ones. Errors
are relative L2 of the logits, from those of float32. ONNX Runtime quantizes uint8 values and int8
weights per channel (QDQ); OpenVINO through NNCF, fp32 with INFERENCE_PRECISION_HINT=f32 and beside
it what it runs by default. Peers that are not installed are left out. Needs torchvision.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from half import EAGER, built, error, images, raced, ratio
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import lissom
from lissom.rewrite.measure.processor import processor_name
from lissom.rewrite.runtime.layers import Int8Layer

PROGRAM = """
pipeline p {
  data calib = sample("train", all)
  stage open { fixpoint { fold_bn; drop_dropout; drop_identity } }
  stage snap {
    once watch; calibrate calib
    once int8_conv2d; once int8_linear; once int8_summand; once int8_average
  }
  stage join {
    fixpoint {
      int8_add; int8_relu; int8_relu6; int8_conv2d_to_codes; int8_linear_to_codes; merge_quantize
      drop_requantize; drop_relu_of_codes; drop_clamp_of_codes; move_codes; order_codes; join_codes
      pad_codes; max_pool2d_of_codes; average_codes; int8_hardswish
    }
  }
}
"""

OURS = "lissom int8"
PAUSE = 0.05
"""Seconds between contestants: the threads of one go on spinning where the next one computes."""

Run = Callable[[], Any]
Make = Callable[[nn.Module, Tensor, int, Path], Run]


def ours(model: nn.Module, calibration: Sequence[Tensor]) -> Any:
    """The result, and on stderr what it cost."""
    data = [(x, torch.zeros(len(x))) for x in calibration]
    torch.set_num_threads(1)
    begun = time.process_time()
    result = lissom.compile(model, PROGRAM, inputs=(images(2, seed=3),), data=data)
    print(f"compiled in {time.process_time() - begun:.0f} CPU s, {result}", flush=True)
    return result


# -- peers -----------------------------------------------------------------------------------------


def bfloat16(model: nn.Module, x: Tensor, threads: int, folder: Path) -> Run:
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    peer = fuse(model) if has_norms else copy.deepcopy(model)
    peer = peer.to(memory_format=torch.channels_last).bfloat16()
    return lambda: peer(x.to(torch.bfloat16, memory_format=torch.channels_last)).float()


def compiled(model: nn.Module, x: Tensor, threads: int, folder: Path) -> Run:
    torch.compiler.reset()
    peer = torch.compile(copy.deepcopy(model))
    return lambda: peer(x)


def onnx_file(model: nn.Module, folder: Path, batch: int) -> Path:
    """The model in ONNX for one batch size, made once."""
    path = folder / f"b{batch}.onnx"
    if not path.exists():
        given = (images(batch),)
        torch.onnx.export(model, given, path, dynamo=True, external_data=False, verbose=False)
    return path


def ort(path: Path, x: Tensor, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def ort_float(model: nn.Module, x: Tensor, threads: int, folder: Path) -> Run:
    return ort(onnx_file(model, folder, len(x)), x, threads)


def ort_int8(model: nn.Module, x: Tensor, threads: int, folder: Path) -> Run:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, ready = onnx_file(model, folder, len(x)), folder / f"b{len(x)}.ready.onnx"
    small = folder / f"b{len(x)}.int8.onnx"
    if not small.exists():
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        kinds = quantization.QuantType
        settings = {"activation_type": kinds.QUInt8, "weight_type": kinds.QInt8}
        reader = _Reader(ready, _calibration(len(x)))
        quantization.quantize_static(ready, small, reader, per_channel=True, **settings)
    return ort(small, x, threads)


def _calibration(batch: int) -> list[Tensor]:
    return [images(batch, seed=4 + number) for number in range(max(1, 16 // batch))]


class _Reader:
    """What ONNX Runtime calibrates on."""

    def __init__(self, path: Path, batches: Sequence[Tensor]) -> None:
        import onnx

        name = onnx.load(path, load_external_data=False).graph.input[0].name
        self.left: Iterator[Mapping[str, Any]] = iter([{name: x.numpy()} for x in batches])

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self.left, None)


def openvino(precision: str) -> Make:
    """`f32`, `default` or `int8`."""

    def make(model: nn.Module, x: Tensor, threads: int, folder: Path) -> Run:
        import openvino as ov

        read = ov.Core().read_model(onnx_file(model, folder, len(x)))
        if precision == "int8":
            import nncf

            read = nncf.quantize(read, nncf.Dataset([v.numpy() for v in _calibration(len(x))]))
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        settings |= {"INFERENCE_PRECISION_HINT": "f32"} if precision == "f32" else {}
        peer = ov.Core().compile_model(read, "CPU", settings)
        given = x.numpy()
        return lambda: torch.from_numpy(np.array(peer(given)[0]))

    return make


PEERS: Mapping[str, Make] = {
    "bfloat16": bfloat16,
    "ORT fp32": ort_float,
    "ORT int8": ort_int8,
    "OpenVINO fp32": openvino("f32"),
    "OpenVINO default": openvino("default"),
    "OpenVINO int8": openvino("int8"),
}


# -- the table -------------------------------------------------------------------------------------


def contestants(
    model: nn.Module, small: nn.Module, x: Tensor, folder: Path, more: Mapping[str, Make]
) -> dict[str, Run]:
    runs: dict[str, Run] = {OURS: lambda: small(x), EAGER: lambda: model(x)}
    for name, make in more.items():
        try:
            runs[name] = make(model, x, torch.get_num_threads(), folder)
        except Exception as failed:  # one peer that is missing or dies leaves the others
            print(f"{name}: {type(failed).__name__}: {str(failed)[:200]}", flush=True)
    return runs


def heading(names: Sequence[str]) -> str:
    cells = ["model, batch, threads", *(f"{name}, ms" for name in names)]
    return f"| {' | '.join(cells)} |\n| :-- |{' --: |' * (len(cells) - 1)}"


def row(name: str, x: Tensor, runs: Mapping[str, Run], rounds: int) -> tuple[str, dict[str, float]]:
    """Milliseconds with how many times as long as ours, and the error of what is coarser."""
    seconds, wanted = raced(runs, rounds, PAUSE), runs[EAGER]()
    ratios = {other: ratio(seconds[other], seconds[OURS]) for other in runs}
    cells = [f"{name}, {len(x)}, {torch.get_num_threads()}"]
    for one, run in runs.items():
        said = f"{1000 * statistics.median(seconds[one]):.1f}"
        said += "" if one == OURS else f" ({ratios[one]:.2f}x)"
        cells.append(f"{said}, {error(run(), wanted):.3f}" if one != EAGER else said)
    return f"| {' | '.join(cells)} |", ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    asked = parser.parse_args()
    more = {name: PEERS[name] for name in asked.peers}
    more |= {"torch.compile": compiled} if asked.compiled else {}
    kept: dict[str, list[float]] = {}
    for name in asked.models:
        model = built(name)
        batches = [images(16, seed=4 + number) for number in range(asked.images // 16)]
        result = ours(model, batches)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            for batch in asked.batches:
                for threads in asked.threads:
                    torch.set_num_threads(threads)
                    x = images(batch)
                    runs = contestants(model, result.model, x, Path(folder), more)
                    if not kept:
                        print(heading(list(runs)))
                    said, ratios = row(name, x, runs, asked.rounds)
                    print(said, flush=True)
                    for other, found in ratios.items():
                        kept.setdefault(other, []).append(found)
        layers = [m for m in result.model.modules() if isinstance(m, Int8Layer)]
        print(f"{name}: {dict(Counter(layer.ran for layer in layers))}", flush=True)
    for other, found in kept.items():
        print(f"{other} / {OURS}: {math.exp(statistics.fmean(map(math.log, found))):.2f}")
    print(f"{processor_name()}, torch {torch.__version__}, median of {asked.rounds} rounds")


if __name__ == "__main__":
    main()
