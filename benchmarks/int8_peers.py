"""What runs beside lissom's integer networks, each in a process of its own: threads and memory of
one do not disturb the next.
"""

from __future__ import annotations

import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from half import built, images
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import lissom

OURS, PRUNED, EAGER = "lissom int8", "lissom half the channels, int8", "torch float32"
SHORT = 0.2
"""Seconds of a turn: what runs faster than this is timed several times in each."""


@dataclass(frozen=True)
class Cell:
    """A model of `half.built`, a batch size, and threads. folder: files that contestants share."""

    model: str
    batch: int
    threads: int
    folder: Path

    @property
    def x(self) -> Tensor:
        return images(self.batch)


Run = Callable[[], Any]
Make = Callable[[Cell], Run]


def artifact(name: str) -> Make:
    def make(cell: Cell) -> Run:
        model, x = lissom.load(cell.folder / name), cell.x
        return lambda: model(x)

    return make


# -- torch -----------------------------------------------------------------------------------------


def eager(cell: Cell) -> Run:
    model, x = built(cell.model), cell.x
    return lambda: model(x)


def folded(cell: Cell) -> nn.Module:
    """The model in channels last, its batch norms folded by torch."""
    model = built(cell.model)
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return (fuse(model) if has_norms else model).to(memory_format=torch.channels_last)


def bfloat16(cell: Cell) -> Run:
    model, x = folded(cell).bfloat16(), cell.x
    return lambda: model(x.to(torch.bfloat16, memory_format=torch.channels_last)).float()


def compiled(cell: Cell, *, half: bool = False) -> Run:
    """Frozen: Inductor folds batch norms, packs weights, and chooses layouts."""
    kind = torch.bfloat16 if half else torch.float32
    model, x = _inductor(built(cell.model).to(kind)), cell.x
    return lambda: model(x.to(kind)).float()


def _inductor(model: nn.Module) -> Any:
    import torch._inductor.config as settings

    settings.freezing = True
    return torch.compile(model)


def torchao(cell: Cell) -> Run:
    """Post-training static quantization for Inductor on x86."""
    import torchvision_cpu

    torchvision_cpu.prepare()
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    x = cell.x
    with torch.no_grad():
        graph = torch.export.export(built(cell.model), (x,), strict=True).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = quantize_pt2e.prepare_pt2e(graph, quantizer)
        for batch in calibration(cell.batch):
            prepared(batch)
        model = _inductor(quantize_pt2e.convert_pt2e(prepared))
    return lambda: model(x)


# -- ONNX Runtime and OpenVINO ---------------------------------------------------------------------


def calibration(batch: int) -> list[Tensor]:
    """The images that all contestants are calibrated on."""
    return [images(batch, seed=4 + number) for number in range(max(1, 16 // batch))]


def onnx_file(cell: Cell) -> Path:
    path = cell.folder / f"b{cell.batch}.onnx"
    if not path.exists():
        given, model = (cell.x,), built(cell.model)
        torch.onnx.export(model, given, path, dynamo=True, external_data=False, verbose=False)
    return path


def ort(path: Path, cell: Cell) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = cell.threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: cell.x.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def ort_float(cell: Cell) -> Run:
    return ort(onnx_file(cell), cell)


def ort_int8(cell: Cell) -> Run:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, ready = onnx_file(cell), cell.folder / f"b{cell.batch}.ready.onnx"
    small = cell.folder / f"b{cell.batch}.int8.onnx"
    if not small.exists():
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        kinds = quantization.QuantType
        settings = {"activation_type": kinds.QUInt8, "weight_type": kinds.QInt8}
        reader = _Reader(ready, calibration(cell.batch))
        quantization.quantize_static(ready, small, reader, per_channel=True, **settings)
    return ort(small, cell)


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

    def make(cell: Cell) -> Run:
        import openvino as ov

        read = ov.Core().read_model(nncf_file(cell) if precision == "int8" else onnx_file(cell))
        settings = {"INFERENCE_NUM_THREADS": cell.threads, "NUM_STREAMS": 1}
        settings |= {"INFERENCE_PRECISION_HINT": "f32"} if precision == "f32" else {}
        peer = ov.Core().compile_model(read, "CPU", settings)
        given = cell.x.numpy()
        return lambda: torch.from_numpy(np.array(peer(given)[0]))

    return make


def nncf_file(cell: Cell) -> Path:
    path = cell.folder / f"b{cell.batch}.nncf.xml"
    if not path.exists():
        import nncf
        import openvino as ov

        kind = {"model_type": nncf.ModelType.TRANSFORMER} if "vit" in cell.model else {}
        data = nncf.Dataset([v.numpy() for v in calibration(cell.batch)])
        small = nncf.quantize(ov.Core().read_model(onnx_file(cell)), data, **kind)
        ov.save_model(small, path, compress_to_fp16=False)
    return path


PEERS: Mapping[str, Make] = {
    EAGER: eager,
    "torch bfloat16": bfloat16,
    "torch.compile float32": compiled,
    "torch.compile bfloat16": lambda cell: compiled(cell, half=True),
    "torchao int8, compiled": torchao,
    "ORT float32": ort_float,
    "ORT int8": ort_int8,
    "OpenVINO float32": openvino("f32"),
    "OpenVINO default": openvino("default"),
    "OpenVINO int8": openvino("int8"),
}
CONTESTANTS: Mapping[str, Make] = {OURS: artifact("int8"), PRUNED: artifact("pruned"), **PEERS}


# -- processes -------------------------------------------------------------------------------------


class Contestant:
    """One process. `first` is what it gave when it was ready. Raises RuntimeError where it cannot
    be set up.
    """

    def __init__(self, name: str, cell: Cell) -> None:
        self.pipe, other = multiprocessing.get_context("spawn").Pipe()
        arguments = (other, name, cell)
        self.process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments)
        self.process.start()
        other.close()
        try:
            found = self.pipe.recv()
        except EOFError:
            found = "its process ended"
        if isinstance(found, str):
            raise RuntimeError(found)
        self.first = torch.from_numpy(found)

    def turn(self) -> float:
        """Median seconds of a run."""
        self.pipe.send(True)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(False)
        self.process.join()


def serve(pipe: Connection, name: str, cell: Cell) -> None:
    """What a contestant's process does until it is told to end."""
    torch.set_num_threads(cell.threads)
    with torch.no_grad():
        try:
            run = CONTESTANTS[name](cell)
            pipe.send(copy.copy(run().float().numpy()))
        except Exception as failed:  # a peer that is missing or dies leaves the others
            pipe.send(f"{type(failed).__name__}: {str(failed)[:200]}")
            return
        while pipe.recv():
            pipe.send(_timed(run))


def _timed(run: Run) -> float:
    """It rested while others ran: once for the caches, then as often as a turn has time for."""
    run()
    seconds: list[float] = []
    while sum(seconds) < SHORT:
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)
