"""The engine's face: a model and a program in, a smaller model, a journal and a certificate out."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from ...grammar.checks.check import require_sound
from ...grammar.diagnostics import Diagnostic, Label, fail
from ...grammar.library.program import Program
from ...grammar.tree import tree as t
from ...grammar.tree.rules import RULE_KINDS
from ..apply.cost import present_costs
from ..apply.queries import QUESTIONS
from ..capture.capture import Captured, capture
from ..capture.inputs import Case, stand_in
from ..exits.rows import behind_exits
from ..exits.segments import Behind, running, write_back
from ..graph.digest import model_digest
from ..graph.own import declared
from ..graph.snapshot import finish, snapshot
from ..journal import Applied, Costs, Journal, StageEnd, Verdict
from ..measure.batches import Taken
from ..measure.compare import Metric, Metrics
from ..measure.gradients import Loss, loss_of_task
from ..measure.large_blocks import giving_back, large_blocks_mapped
from ..measure.latency import Clock
from ..measure.samples import Example, Samples
from ..measure.source import Source
from ..ops.vocabulary import Vocabulary
from ..rules.state import State
from ..runtime.exits import EarlyExit
from ..torch_internals import version_of
from .gc import fewer_collections
from .layout import keep_layout
from .pipeline import PipelineRun, Progress
from .remarks import tell_of_kernels
from .schedule import HostParts


@dataclass
class Compiled:
    """What a compilation gave. `model` is a plain `nn.Module` that needs no lissom."""

    model: fx.GraphModule
    original: fx.GraphModule
    program: Program
    pipeline: t.Pipeline | None
    journal: Journal
    before: Costs
    after: Costs
    verdicts: tuple[Verdict, ...]
    notes: tuple[Diagnostic, ...]
    capture_how: str
    samples: Samples
    metrics: Metrics
    seed: int
    seconds: float
    vocabulary: Vocabulary
    stamp: tuple[int, ...] = ()
    controls: Mapping[str, fx.GraphModule] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def behind(self) -> Behind:
        """What goes on behind the exits of the model, if it has some."""
        return behind_exits(self.model, self.samples.examples)

    @cached_property
    def running(self) -> fx.GraphModule | EarlyExit:
        """The model that is run: from one with exits samples leave."""
        return running(self.model, self.behind)

    def take_thresholds(self) -> None:
        """What was set by hand on the network that runs is part of the model, too."""
        network = self.running
        if isinstance(network, EarlyExit) and write_back(self.model, network):
            vars(self).pop("digests", None)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hashes of the captured model and of the result, taken when they are first needed.

        Raises A030 where the result was changed since: a certificate speaks of the model that was
        verified.
        """
        if self.stamp != stamp(self.model):
            hint = "save the result before training it further, or save your own copy another way"
            raise fail(
                "A030",
                "the compiled model was changed after it was verified",
                Label(None),
                help=hint,
            )
        return {"original": model_digest(self.original), "result": model_digest(self.model)}

    @property
    def verified(self) -> bool:
        """Whether every claim that was checked holds."""
        return all(verdict.holds for verdict in self.verdicts)

    @property
    def applied(self) -> list[Applied]:
        return [event for event in self.journal.of(Applied) if event.stage in self.kept_stages]

    @property
    def kept_stages(self) -> frozenset[str]:
        """Stages that were not rolled back."""
        return frozenset(end.stage for end in self.journal.of(StageEnd) if end.kept)


def stamp(module: nn.Module) -> tuple[int, ...]:
    """Changes whenever a weight is written to or replaced; costs next to nothing."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple(number for tensor in tensors for number in (id(tensor), version_of(tensor)))


@dataclass(frozen=True)
class Options:
    """How to compile. `args` are the pipeline's parameters; `functions` and `own` are what the host
    program adds. `fuel`: how many rewrites at most. `loss`: what gradients are taken of.
    `journal`: where events go, so that they are there when a stage fails. `second`: inputs of
    another size, or several, that the captured graph must hold for. `clock`, `decided`: see
    `State`.
    """

    pipeline: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    allow: Iterable[str] = RULE_KINDS
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    verify: bool = True
    seed: int = 0
    fuel: int | None = None
    loss: Loss = loss_of_task
    journal: Journal = field(default_factory=Journal)
    progress: Progress = lambda stage, done, total: None
    second: Any = None
    clock: Clock = time.perf_counter
    decided: Mapping[tuple[str, str], int] | None = None
    given: HostParts = field(default_factory=HostParts)


def compile_model(
    model: nn.Module,
    program: Program,
    inputs: tuple[Any, ...] | dict[str, Any] | None,
    data: Source | None,
    metrics: Mapping[str, Metric],
    options: Options,
) -> Compiled:
    """Captures, runs the pipeline, checks. The caller's model is never changed.

    Raises `LissomError` where `lissom check` finds an error in the program, the model cannot be
    captured, the program cannot be run, or a rule breaks its promise.
    """
    warnings = require_sound(program, options.functions)
    return compile_checked(model, program, inputs, data, metrics, options, warnings)


@contextmanager
def own_precision() -> Iterator[None]:
    """Models are compiled in the precision of their weights, also where the caller works with
    `torch.autocast`, which changes what ops return; and outside of `torch.inference_mode`, in which
    nothing can be trained.
    """
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@own_precision()
@fewer_collections()
def compile_checked(
    model: nn.Module,
    program: Program,
    inputs: tuple[Any, ...] | dict[str, Any] | None,
    data: Source | None,
    metrics: Mapping[str, Metric],
    options: Options,
    notes: tuple[Diagnostic, ...] = (),
) -> Compiled:
    """As `compile_model`, of a program that went through the checker, which said `notes`."""
    begun = time.perf_counter()
    example = inputs if inputs is not None else example_of(data, model)
    with declared(Vocabulary(program.declarations, options.own)), giving_back():
        captured = capture(model, example, second=options.second, prove=options.verify)
    original = snapshot(captured.module)
    state = working_state(captured, program, data, options)
    before = present_costs(state)
    run = _run_of(state, program, Metrics(original, metrics), options)
    with large_blocks_mapped():
        run.run()
    _finished(state, original)
    after = present_costs(state)
    return Compiled(
        state.module,
        original,
        program,
        run.source,
        state.journal,
        before,
        after,
        run.final,
        (*notes, *captured.notes),
        captured.how,
        state.samples,
        run.metrics,
        options.seed,
        time.perf_counter() - begun,
        state.vocabulary,
        stamp(state.module),
        run.controls,
        run.names,
    )


def _run_of(state: State, program: Program, metrics: Metrics, options: Options) -> PipelineRun:
    allowed, source = frozenset(options.allow), program.pipeline(options.pipeline)
    given = options.args, options.progress, allowed, options.given
    return PipelineRun(state, program, source, metrics, *given)


def _finished(state: State, original: fx.GraphModule) -> None:
    keep_layout(state, original)
    finish(state.module, done=True)
    state.module.eval()  # containers that rewrites made begin in training mode
    tell_of_kernels(state.journal, state.module, state.samples.inputs)


def working_state(
    captured: Captured, program: Program, data: Source | None, options: Options
) -> State:
    vocabulary = Vocabulary(program.declarations, options.own)
    others = [Example(case.label, positional(captured, case)) for case in captured.more]
    inputs = positional(captured, Case(captured.inputs, captured.kwargs))
    samples = Samples(inputs, data, options.loss, others, taken(captured, inputs))
    return State(
        captured.module,
        vocabulary,
        options.functions,
        QUESTIONS,
        samples,
        options.journal,
        options.verify,
        options.seed,
        options.fuel,
        captured.otherwise,
        program.attached,
        options.clock,
        options.decided,
    )


def positional(captured: Captured, case: Case) -> tuple[Any, ...]:
    """The inputs of a case in the order of the graph's, up to the last that was given; defaults
    fill the gaps.
    """
    if not case.kwargs:
        return tuple(case.args)
    places = [node for node in captured.module.graph.nodes if node.op == "placeholder"]
    given = {**dict(zip((p.target for p in places), case.args, strict=False)), **case.kwargs}
    last = max(number for number, place in enumerate(places) if place.target in given)
    return tuple(given.get(place.target, *place.args[:1]) for place in places[: last + 1])


def taken(captured: Captured, inputs: tuple[Any, ...]) -> Taken:
    """How batches become inputs of the captured graph."""
    places = [node for node in captured.module.graph.nodes if node.op == "placeholder"]
    defaults = {str(place.target): place.args[0] for place in places if place.args}
    names = tuple(str(place.target) for place in places)
    return Taken(names, defaults, inputs, stand_in(names, captured.kwargs))


def as_source(data: Source | Iterable[Any] | None) -> Source | None:
    """Data as a function of the split; batches that are no function are those of every split. An
    iterator yields them once, and they are kept.
    """
    if data is None or callable(data):
        return data
    kept: list[Any] = []

    def all_of(split: str) -> Iterable[Any]:
        if not isinstance(data, Iterator):
            return data
        kept.extend(data)
        return kept

    return all_of


def example_of(data: Source | None, model: nn.Module) -> tuple[Any, ...] | dict[str, Any]:
    """Without example inputs, two samples of the first batch of the training data serve."""
    if data is None:
        hint = "pass `inputs=`, or define inputs() in the model file"
        raise fail("M010", "the model needs example inputs to be captured", Label(None), help=hint)
    with torch.random.fork_rng(devices=[]):  # a loader draws from the caller's generator
        batch = next(iter(data("train")), None)
    if batch is None:
        hint = "pass `inputs=`, or give the split `train` a batch"
        raise fail("M010", "the model needs example inputs, and the data is empty", help=hint)
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(x, Mapping):
        named = _arguments(model, x)
        return {name: _two(value) for name, value in named.items()} or (dict(x),)
    args = tuple(x) if isinstance(x, (tuple, list)) else (x,)
    return tuple(map(_two, args))


def _two(value: Any) -> Any:
    return value[:2] if isinstance(value, torch.Tensor) else value


def _arguments(model: nn.Module, x: Mapping[str, Any]) -> dict[str, Any]:
    """What forward takes of a mapping by name; nothing where the mapping is an input itself."""
    parameters = inspect.signature(model.forward).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in x.items() if every or name in parameters}
