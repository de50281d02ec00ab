"""The two races of the channel benchmark: how long a cut takes, and how fast the cut model is."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import channels_peer as peer
import report
import torch
from capture_models import torchvision_entries
from channels_cut import analysed, parameters, random_half
from channels_models import Measure, Row, alive
from measure import Contestant, race
from torch import Tensor, fx, nn

from lissom.rewrite.apply.cost import model_costs
from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.flow import Flow
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.ops.call import tensor_at

SPEED = ("resnet50", "densenet121", "densenet201", "vit_b_16")
LATENCY = ("resnet50", "mobilenet_v2", "vit_b_16")
ROUNDS, RUNS = 3, 21
_CAPTURE, _CUT, _PEER = "capture", "analysis and cut", "Torch-Pruning"
_SPEED_HEAD = (
    "model",
    "lissom: capture",
    "lissom: analysis, scores, cut",
    "Torch-Pruning",
    "ratio",
)
_SPEED_HEAD += ("ratio with capture", "parameters", "lissom keeps", "Torch-Pruning keeps")
_LATENCY_HEAD = ("model", "CPU before", "CPU after", "times as fast", "MACs before", "MACs after")
_LATENCY_HEAD += ("times fewer MACs",)


def entries(name: str, with_peer: bool) -> Iterator[tuple[str, Measure]]:
    """The models of one race, each with what fills its row."""
    builds = {model: build for model, _, build in torchvision_entries()}
    for model in SPEED if name == "speed" else LATENCY:
        build = alive(builds[model])
        yield model, _speed(build, with_peer) if name == "speed" else _latency(build)


def table(name: str, rows: Sequence[Row]) -> str:
    lines = [row for row in rows if "error" not in row]
    if not lines:
        return ""
    head = _SPEED_HEAD if name == "speed" else _LATENCY_HEAD
    cells = _speed_cells if name == "speed" else _latency_cells
    return report.table(head, [[row["name"], *cells(row)] for row in lines])


# -- how long a cut takes --------------------------------------------------------------------------


def _speed(build: Any, with_peer: bool) -> Measure:
    def measure(row: Row) -> None:
        model, inputs = build()
        row |= {"stage": "race", "before": parameters(model)}

        def note(name: str, result: nn.Module) -> None:
            row[name] = parameters(result)

        runners = [
            Contestant(_CAPTURE, lambda: model, lambda m: capture(m, inputs, prove=False)),
            Contestant(
                _CUT,
                lambda: capture(model, inputs, prove=False),
                cut_everywhere,
                lambda result: note("after", result),
            ),
        ]
        if with_peer:
            runners.append(_peer_runner(build, note))
        with_times = race(runners, ROUNDS)
        row["seconds"] = {one.name: with_times.median(one.name) for one in runners}
        row["stage"] = "done"

    return measure


def _peer_runner(build: Any, note: Any) -> Contestant:
    importlib.import_module("torch_pruning")  # before the clock starts

    def prepare() -> tuple[Any, ...]:
        model, inputs = build()
        return model, inputs, peer.writers(model, inputs)

    def run(given: tuple[Any, ...]) -> nn.Module:
        peer.prune(*given, everywhere=True)
        return given[0]

    return Contestant(_PEER, prepare, run, lambda model: note("peer_after", model))


def cut_everywhere(captured: Captured) -> fx.GraphModule:
    """Removes the half of all features with the smallest L1 norms, those of each class relative to
    their mean; every class keeps its best.
    """
    prepared = analysed(captured)
    norms = norms_of(prepared.flow)
    leaves = [torch.tensor(each.leaves) for each in prepared.free]
    scores = [norms[own] / norms[own].mean().clamp_min(1e-30) for own in leaves]
    best = torch.stack([own[score.argmax()] for own, score in zip(leaves, scores, strict=True)])
    everything = torch.cat(leaves)
    weakest = everything[torch.cat(scores).argsort(stable=True)[: len(everything) // 2]]
    return cut(prepared.flow, weakest[~torch.isin(weakest, best)].tolist())


def norms_of(flow: Flow) -> Tensor:
    """The L1 norm of the weights that write each leaf, [leaves]."""
    norms, table = torch.zeros(len(flow.atoms), dtype=torch.float64), flow.atoms.table()
    for path, key in flow.paths.items():
        tensor = tensor_at(flow.view.root, path)
        if tensor.ndim > 1 and tensor.is_floating_point():
            # The first axis of a weight is the one that it writes.
            sizes = tensor.detach().abs().flatten(1).sum(1).double()
            for track in (t for t in flow.params.get(key, ()) if t.shape[0] > 1):
                for leaves in table[track.reshape(-1)].T:
                    norms.index_add_(0, leaves, sizes)
    return norms


def _speed_cells(row: Row) -> list[str]:
    spent = row["seconds"]
    cells = [report.seconds(spent[_CAPTURE]), report.seconds(spent[_CUT])]
    if _PEER in spent:
        whole = spent[_CUT] + spent[_CAPTURE]
        cells += [report.seconds(spent[_PEER]), report.times(spent[_PEER] / spent[_CUT])]
        cells += [report.times(spent[_PEER] / whole)]
    else:
        cells += ["--"] * 3
    kept = row.get("peer_after")
    share = "--" if kept is None else f"{kept / row['before']:.2f}"
    return [*cells, f"{row['before'] / 1e6:.1f} M", f"{row['after'] / row['before']:.2f}", share]


# -- how fast the cut model is ---------------------------------------------------------------------


def _latency(build: Any) -> Measure:
    def measure(row: Row) -> None:
        model, inputs = build()
        with torch.no_grad():
            row["stage"] = "cut"
            prepared = analysed(capture(model, inputs, prove=False))
            before = prepared.captured.module
            after = cut(prepared.flow, random_half(prepared.free))
            row["stage"] = "race"
            row["macs"] = [model_costs(each, GraphView(each)).macs for each in (before, after)]
            row["seconds"] = _medians(before, after, inputs)
            row["stage"] = "done"

    return measure


def _medians(before: nn.Module, after: nn.Module, inputs: tuple[Any, ...]) -> list[float]:
    """CPU seconds of one batch, the two models in turns; each has run before."""
    both = {"before": before, "after": after}
    runners = [Contestant(n, lambda m=m: m, lambda m: m(*inputs)) for n, m in both.items()]
    race(runners, 2)
    times = race(runners, RUNS)
    return [times.median(name) for name in both]


def _latency_cells(row: Row) -> list[str]:
    (slow, fast), (many, few) = row["seconds"], row["macs"]
    cells = [report.seconds(slow), report.seconds(fast), report.times(slow / fast)]
    return [*cells, f"{many / 1e6:.0f} M", f"{few / 1e6:.0f} M", report.times(many / few)]
