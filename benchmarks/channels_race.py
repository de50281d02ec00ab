"""The two races of the channel benchmark: how long a cut takes, and how fast the cut model is."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import channels_peer as peer
import report
import torch
from capture_models import timm_builder, torchvision_entries
from channels_cut import analysed, parameters, random_half
from channels_models import Measure, Row, alive
from measure import Contestant, race
from torch import fx, nn

import lissom
from lissom.grammar.library.program import program_of
from lissom.passes.functions import FUNCTIONS
from lissom.rewrite.apply.cost import model_costs
from lissom.rewrite.apply.queries import QUESTIONS
from lissom.rewrite.capture.capture import Captured, capture
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.journal import Applied, Journal
from lissom.rewrite.measure.samples import Samples
from lissom.rewrite.pipeline import compile as compiling
from lissom.rewrite.pipeline.strategy import Runner
from lissom.rewrite.rules.rule import compile_rule
from lissom.rewrite.rules.state import State

SPEED = ("resnet50", "densenet121", "densenet201", "vit_b_16", "gcvit_tiny")
LATENCY = ("resnet50", "mobilenet_v2", "vit_b_16")
ROUNDS, RUNS = 3, 21
TEXT = (Path(__file__).resolve().parents[1] / "passes" / "prune.lissom").read_text()
(RULE,) = program_of(TEXT).own_rules.values()
PROGRAM = f"""{TEXT}
pipeline half {{ budget drift(outputs) <= 1000%; stage cut {{ once prune_l1(ratio = 50%) }} }}"""
_CAPTURE, _COMPILE, _WHOLE, _PEER = "capture", "compile", "compile, verified", "Torch-Pruning"
_SPEED_HEAD = ("model", "cuts", "lissom: capture", "compile behind it, not verified")
_SPEED_HEAD += ("Torch-Pruning", "times as fast", "all of it, verified", "passes beyond capture")
_SPEED_HEAD += ("parameters", "lissom keeps", "Torch-Pruning keeps")
_LATENCY_HEAD = ("model", "CPU before", "CPU after", "times as fast", "MACs before", "MACs after")
_LATENCY_HEAD += ("times fewer MACs",)


def entries(name: str, with_peer: bool) -> Iterator[tuple[str, Measure]]:
    """The models of one race, each with what fills its row."""
    builds = {model: build for model, _, build in torchvision_entries()}
    builds |= {"gcvit_tiny": timm_builder("gcvit_tiny")} if find_spec("timm") else {}
    for model in (each for each in (SPEED if name == "speed" else LATENCY) if each in builds):
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
                _COMPILE,
                lambda: capture(model, inputs, prove=False),
                lambda captured: compiled_behind(captured, model, inputs, verify=False),
                lambda result: row.update(cuts=len(result.journal.of(Applied))),
            ),
            Contestant(
                _WHOLE,
                lambda: model,
                lambda m: lissom.compile(m, PROGRAM, inputs=inputs).model,
                lambda result: note("after", result),
            ),
        ]
        if with_peer:
            runners += _peer_runners(build, note, row)
        proven = capture(model, inputs)
        with counted_passes() as passes:
            compiled_behind(proven, model, inputs, verify=True)
        row["passes"] = len(passes)
        with_times = race(runners, ROUNDS)
        row["seconds"] = {one.name: with_times.median(one.name) for one in runners}
        row["stage"] = "done"

    return measure


def _peer_runners(build: Any, note: Any, row: Row) -> list[Contestant]:
    """None where it fails on the model."""
    runner = _peer_runner(build, note)
    try:
        runner.run(runner.prepare())
    except Exception as error:
        row["peer_error"] = f"{type(error).__name__}: {error}"[:300]
        return []
    return [runner]


def _peer_runner(build: Any, note: Any) -> Contestant:
    importlib.import_module("torch_pruning")  # before the clock starts

    def prepare() -> tuple[Any, ...]:
        model, inputs = build()
        return model, inputs, peer.writers(model, inputs)

    def run(given: tuple[Any, ...]) -> nn.Module:
        peer.prune(*given)
        return given[0]

    return Contestant(_PEER, prepare, run, lambda model: note("peer_after", model))


def compiled_behind(
    captured: Captured, model: nn.Module, inputs: tuple[Any, ...], verify: bool
) -> lissom.Result:
    """What `lissom.compile` does behind the capture."""
    with patch.object(compiling, "capture", lambda *_, **__: captured):
        return lissom.compile(model, PROGRAM, inputs=inputs, verify=verify)


@contextmanager
def counted_passes() -> Iterator[list[str]]:
    """The runs of whole graphs, called or interpreted, other than within each other."""
    passes: list[str] = []
    inside = [False]

    def told(owner: type, name: str) -> Any:
        real = getattr(owner, name)

        def run(self: Any, *args: Any, **named: Any) -> Any:
            if inside[0] or not isinstance(self, (fx.GraphModule, fx.Interpreter)):
                return real(self, *args, **named)
            passes.append(type(self).__name__)
            inside[0] = True
            try:
                return real(self, *args, **named)
            finally:
                inside[0] = False

        return patch.object(owner, name, run)

    with told(nn.Module, "__call__"), told(fx.Interpreter, "run"):
        yield passes


def cut_each(captured: Captured) -> State:
    """The step of `lissom.compile` alone: one `once prune_l1`, not verified."""
    view, samples = GraphView(captured.module), Samples(tuple(captured.inputs))
    given = view.vocabulary, FUNCTIONS, QUESTIONS, samples, Journal()
    state = State(captured.module, *given, verify=False)
    Runner(state, "cut").once([compile_rule(RULE, {"ratio": 0.5})])
    return state


def _speed_cells(row: Row) -> list[str]:
    spent = row["seconds"]
    cells = [str(row["cuts"]), report.seconds(spent[_CAPTURE]), report.seconds(spent[_COMPILE])]
    known = _PEER in spent
    failed = "fails" if "peer_error" in row else "--"
    cells += [report.seconds(spent[_PEER])] if known else [failed]
    cells += [report.times(spent[_PEER] / spent[_COMPILE])] if known else ["--"]
    cells += [report.seconds(spent[_WHOLE]), str(row["passes"])]
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
