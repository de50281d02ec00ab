"""From a trained model to a graph of its modules that is proven to compute the same.

>>> captured = capture(model, (torch.rand(1, 3, 224, 224),))  # doctest: +SKIP
>>> captured.module(torch.rand(8, 3, 224, 224))               # doctest: +SKIP
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from ...grammar.diagnostics import Diagnostic, LissomError
from ..graph.modules import is_exported
from ..graph.runs import one_line
from .attempts import (
    Candidate,
    CaptureAttempt,
    CaptureFailure,
    CaptureTrial,
    by_export,
    by_trace,
    contradicted,
)
from .axes import variations
from .checks import check_model, hook_notes
from .computed import store_computed
from .conditions import Condition
from .copy import own_copy, uncompiled, unwrapped
from .equality import eager_output, run_eager
from .fused import REMEDY, fused_layers, noted_fused
from .inputs import SECOND, Case, as_case, as_cases, check_bindable, doubled, leading_size
from .instruments import check_instruments
from .recorded import Specialised
from .sizes import Group, call_axes

_MOST_OPAQUE = 16


@dataclass(frozen=True)
class Captured:
    """A captured model.

    `module` runs alone and owns its weights; `how` is "trace", "export" or "trace with opaque
    leaves"; `inputs` and `kwargs` are the example; `specialised` is what was taken from it;
    `opaque` are module paths kept as one node, each with its reason; `proved` are the cases on
    which the graph equals the eager model bit for bit, and `more` are those beyond the example;
    `guards` is what a call must fulfil, or the module raises an AssertionError that says so;
    `whole` is the graph before dead code and constants went, with what Python decided on the
    example.
    """

    module: fx.GraphModule
    how: str
    inputs: tuple[Any, ...]
    specialised: tuple[Specialised, ...] = ()
    opaque: tuple[str, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    proved: tuple[str, ...] = ()
    more: tuple[Case, ...] = field(default=(), repr=False, compare=False)
    guards: tuple[Condition, ...] = ()
    whole: Candidate | None = field(default=None, repr=False, compare=False)

    def otherwise(self, args: tuple[Any, ...]) -> str:
        """Why the model would give another graph for these inputs, which take the places of the
        example; "" where nothing says so.
        """
        broken = contradicted(self.whole, Case(args, {})) if self.whole is not None else []
        for about in (guard.about for guard in broken):
            return f"{about.why} on the example ({about.source})"
        sizes = any(label.startswith("size ") for label in self.proved)
        return "" if sizes or self.how != "export" else "it was exported at one size"


def capture(model: nn.Module, inputs: Any, *, second: Any = None, prove: bool = True) -> Captured:
    """Capture `model` on an example: a tuple of positional inputs, or a dict of inputs by name.

    The graph must equal the eager model bit for bit on `inputs` and on `second`, an example or a
    list of them (by default the example with twice the batch). Every other axis at which the model
    runs is tried at a larger and a smaller size; what the graph does not follow is in `guards` and
    in `notes`. `prove` False compares on the example alone.

    Raises LissomError: M001 training mode, M002 not deterministic, M003 changes its state, M004
    cannot be captured, M005 the graph differs from the model, M006 it rests on a value that
    `second` contradicts, M008 unfit parameters, T008 this torch hides calls.
    """
    check_instruments()
    model = unwrapped(model)
    check_model(model)
    case = as_case(inputs)
    check_bindable(model, case)
    no_mode = any(map(is_exported, model.modules()))
    with torch.inference_mode(False), torch.no_grad(), uncompiled():
        work = own_copy(model)
        started = time.perf_counter()
        expected, notes = eager_output(work, case, exported=no_mode)
        seconds = time.perf_counter() - started
        more, warnings = _more_trials(work, case, second, seconds / 2) if prove else ([], [])
        # Behind the runs above: what is stored is proven against a model that computes it.
        notes = _with_stored(notes, work) + list(hook_notes(work))
        attempt = _first_that_holds(work, [CaptureTrial(case, expected), *more])
    return Captured(
        attempt.module,
        attempt.how,
        case.args,
        attempt.specialised,
        attempt.opaque,
        (*notes, *warnings, *attempt.notes),
        case.kwargs,
        tuple(case.label for case in attempt.proved),
        attempt.proved[1:],
        attempt.conditions,
        attempt.whole,
    )


def _with_stored(notes: list[Diagnostic], model: nn.Module) -> list[Diagnostic]:
    """Store computed weights, and say that instead of taking them for caches (M003)."""
    stored = list(store_computed(model))
    places = {label.where for note in stored for label in note.labels}
    return [n for n in notes if places.isdisjoint(label.where for label in n.labels)] + stored


def _more_trials(
    model: nn.Module, case: Case, second: Any, seconds: float
) -> tuple[list[CaptureTrial], list[Diagnostic]]:
    """Trials beyond the example, and M009 if the model itself runs at no other batch size.

    The user's own cases are required. Without them the doubled batch is; other sizes are tried.
    """
    trials, warnings = [], []
    for other in as_cases(second) if second is not None else ():
        check_bindable(model, other)
        trials.append(CaptureTrial(other, run_eager(model, other)))
    batch = _batch_trial(model, case, required=not trials)
    trials += [batch] if isinstance(batch, CaptureTrial) else []
    warnings += [batch] if isinstance(batch, Diagnostic) and second is None else []
    size = leading_size(case) if isinstance(batch, CaptureTrial) else None
    varied, untried = variations(model, case, size, seconds)
    return trials + varied, warnings + untried


def _batch_trial(model: nn.Module, case: Case, required: bool) -> CaptureTrial | Diagnostic:
    """Twice the batch, with other values where the model takes them."""
    batch = doubled(case)
    if batch is None:
        return _one_case("the inputs hold no tensor to make a larger batch of")
    outcome = _try_eager(model, batch)
    if isinstance(outcome, Diagnostic):
        batch = doubled(case, varied=False) or batch
        outcome = _try_eager(model, batch)
    if isinstance(outcome, Diagnostic):
        return outcome
    axes = (axis for axis in call_axes(model, case) if axis.is_batch(leading_size(case)))
    groups = tuple(Group((axis,), 2 * axis.size) for axis in axes)
    return CaptureTrial(batch, outcome, required, groups)


def _try_eager(model: nn.Module, case: Case) -> Any:
    """The model's output on `case`, or the warning that it has none."""
    try:
        return case.run(model)
    except Exception as error:
        return _one_case(f"on {case.label} the model itself fails: {one_line(error)}")


def _one_case(why: str) -> Diagnostic:
    return Diagnostic(
        "M009",
        "the capture could only be proven at one batch size",
        notes=(why,),
        helps=(f"give inputs that the model accepts as {SECOND}",),
        severity="warning",
    )


def _first_that_holds(model: nn.Module, trials: list[CaptureTrial]) -> CaptureAttempt:
    """Trace, around fused layers if need be, then export, then tracing around the modules to blame;
    raises the trace's own diagnostic.
    """
    traced = by_trace(model, trials, {})
    if isinstance(traced, CaptureAttempt):
        return traced
    fused = fused_layers(model, (trial.case for trial in trials))
    opaque = {path: reason for path, reason in fused.items() if path}
    failure = noted_fused(by_trace(model, trials, opaque), opaque) if opaque else traced
    if isinstance(failure, CaptureAttempt):
        return failure
    exported = by_export(model, trials)
    if isinstance(exported, CaptureAttempt):
        return exported
    around = _around_the_blamed(model, trials, opaque, failure)
    if around is not None:
        return around
    found = traced.diagnostic
    notes = (*found.notes, f"torch.export does not help: {exported.diagnostic.message}")
    helps = (*found.helps, REMEDY) if fused else found.helps
    raise LissomError(replace(found, notes=notes, helps=helps))


def _around_the_blamed(
    model: nn.Module, trials: list[CaptureTrial], fused: dict[str, str], failure: CaptureFailure
) -> CaptureAttempt | None:
    """Keep one module more whole at each attempt, until a trace holds or no one is to blame."""
    opaque = dict(fused)
    while len(opaque) < _MOST_OPAQUE + len(fused):
        path = _blamed(failure.site, opaque)
        if not path:
            return None
        opaque[path] = failure.diagnostic.message
        outcome = noted_fused(by_trace(model, trials, opaque), fused)
        if isinstance(outcome, CaptureAttempt):
            return outcome
        failure = outcome
    return None


def _blamed(site: str, opaque: dict[str, str]) -> str:
    """The module to keep whole next: the one that failed, or its parent if that is whole
    already.
    """
    while site in opaque:
        site = site.rpartition(".")[0]
    return site
