"""One way of capturing, tried and proven: the outcome is an attempt that holds, or a failure that
says where.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from ...grammar.diagnostics import Diagnostic
from ...grammar.reached import reached
from ..graph.building import build, copy_of, eliminate_dead, guards_module, move_hooks
from ..graph.names import free_names
from ..graph.runs import innermost, one_line
from ..graph.snapshot import finish
from ..ops.spec import TensorSpec
from .assertions import ConditionWriter
from .candidates import Candidate, CaptureAttempt, CaptureFailure, CaptureTrial, TrialVerdict
from .conditions import (
    AskedSize,
    Condition,
    Findings,
    TrialRow,
    blamed,
    is_text,
    labels_of,
    reads_data,
)
from .constants import drop_unused_state, fold_constants
from .equality import diverging_node, failing_node, first_difference
from .exported import exported
from .forms import Known, forms_of, mode_notes
from .inputs import SECOND, Case, bind, other_values
from .lowering import Untraceable
from .padding import split_padding
from .questions import TYPE
from .recorded import CaptureGuard
from .sizes import call_axes
from .structure import demands
from .tracer import CallRecorder
from .watch import WatchedNodes, is_given, roots, text_of

_REMEDY = (
    "move this code into a submodule of its own, which then stays one opaque node (no rule looks "
    "inside, and only torch.save keeps such a result), or capture the part of the model that does "
    "not need it"
)


def by_trace(
    model: nn.Module, trials: Sequence[CaptureTrial], opaque: dict[str, str]
) -> CaptureAttempt | CaptureFailure:
    """Trace `model` on the first trial's case; `opaque` maps paths of modules to keep whole to the
    reason.
    """
    recorder = CallRecorder(model, frozenset(opaque))
    bound = bind(recorder, trials[0].case.fresh())
    try:
        graph = recorder.trace(*bound.args, **bound.kwargs, **bound.defaults)
    except Exception as error:
        return _broken_trace(recorder, error)
    whole, where = copy_of(graph)
    traced = tuple(recorder.guards.values())
    known = Known(frozenset(_ranked(recorder)), forms_of(recorder.told))
    asked_modes = tuple(mode_notes(recorder.told, recorder.modes))
    watch = WatchedNodes(
        graph, [node for guard in traced for node in (guard.node, *roots(guard.node))]
    )
    module = build(model, graph)
    fold_constants(module)
    split_padding(module)
    free_names(module)
    move_hooks(model, module)
    guards = tuple(CaptureGuard(where[g.node], g.about) for g in traced if not is_text(g))
    candidate = Candidate(model, module, whole, guards, _asked(recorder))
    others = other_values(model, trials[0].case) if any(map(reads_data, traced)) else ()
    told = [*trials, *(CaptureTrial(case, output, False) for case, output in others)]
    verdict = judge(candidate, told, watch, traced)
    if verdict.failure:
        return verdict.failure
    watch.remove()
    findings = Findings(call_axes(model, trials[0].case), traced, verdict.rows, candidate.asked)
    held = _finish(candidate, trials[0].case, findings, known)
    return CaptureAttempt(
        module,
        "trace with opaque leaves" if opaque else "trace",
        candidate,
        (*bound.fixed, *findings.specialised),
        _opaque(module, opaque),
        (*_data_notes(guards), *asked_modes, *findings.notes),
        tuple(verdict.proved),
        held,
    )


def _asked(recorder: CallRecorder) -> tuple[AskedSize, ...]:
    """Where the model's code was told sizes: those of inputs first."""
    found = []
    for (node, axis), source in recorder.asked.items():
        name = text_of(node) if is_given(node) else ""
        sized = axis is not None and isinstance(node.meta["val"], TensorSpec)
        found += [AskedSize(name, axis, node.meta["val"].shape[axis], source)] if sized else []
    return tuple(sorted(found, key=lambda asked: not asked.input))


def _ranked(recorder: CallRecorder) -> set[str]:
    """The inputs whose number of axes the model's code knew, be it by a value made of them."""
    asked = (node for node, _ in recorder.asked)
    return {text_of(n) for n in reached(asked, lambda node: node.all_input_nodes) if is_given(n)}


def _opaque(module: fx.GraphModule, reasons: dict[str, str]) -> tuple[str, ...]:
    hooked = [str(node.target) for node in module.graph.nodes if node.meta.get("effect")]
    found = dict.fromkeys(hooked, "has hooks or parametrizations") | reasons
    return tuple(f"{path}: {reason}" for path, reason in found.items())


def by_export(model: nn.Module, trials: Sequence[CaptureTrial]) -> CaptureAttempt | CaptureFailure:
    """Let torch.export read the model, and lift its graph back to modules."""
    case = trials[1].case if len(trials) > 1 and trials[1].required else trials[0].case
    try:
        lifted = exported(model, case)
    except Exception as error:
        return CaptureFailure("", Diagnostic("M004", f"torch.export fails: {one_line(error)}"))
    module = build(model, lifted.graph)
    fold_constants(module)
    split_padding(module)
    free_names(module)
    candidate = Candidate(model, module, copy_of(module.graph)[0])
    verdict = judge(candidate, trials)
    if verdict.failure:
        return verdict.failure
    axes = call_axes(model, trials[0].case)
    findings = Findings(axes, (), verdict.rows, ())
    inputs = frozenset(axis.input for axis in axes)
    known = Known(inputs, dict.fromkeys(((TYPE, name) for name in inputs), ""), True)
    held = _finish(candidate, trials[0].case, findings, known)
    notes, proved = tuple(findings.notes), tuple(verdict.proved)
    return CaptureAttempt(module, "export", candidate, lifted.fixed, (), notes, proved, held)


def _broken_trace(recorder: CallRecorder, error: Exception) -> CaptureFailure:
    reason, _, remedy = str(error).partition("\n")
    if not isinstance(error, Untraceable):
        reason, remedy = f"{type(error).__name__}: {one_line(error)}", ""
    site = recorder.failed[1] if recorder.failed[0] is error else ""
    owner = f"`{site}`" if site else "the model"
    return CaptureFailure(
        site,
        Diagnostic(
            "M004",
            f"{owner} cannot be traced: {reason}",
            labels_of(site, innermost(error) or recorder.last_source),
            (),
            (remedy or _REMEDY,),
        ),
    )


def _data_notes(guards: Sequence[CaptureGuard]) -> tuple[Diagnostic, ...]:
    """M006 as a warning where values in the example decided what the graph does."""
    found = [guard.about for guard in guards if reads_data(guard)]
    if not found:
        return ()
    return (
        Diagnostic(
            "M006",
            "values in the example decided what the graph does; other values may need another",
            tuple(label for about in found for label in labels_of(about.site, about.source)),
            tuple(about.why for about in found),
            ("give an example for which these answers are the ones you need",),
            "warning",
        ),
    )


def judge(
    candidate: Candidate,
    trials: Sequence[CaptureTrial],
    watch: WatchedNodes | None = None,
    guards: Sequence[CaptureGuard] = (),
) -> TrialVerdict:
    """Run a candidate on every trial. Stops at the first required trial that it fails; one that is
    not required and fails is taken apart.
    """
    verdict, todo = TrialVerdict(), deque(enumerate(trials))
    while todo:
        index, trial = todo.popleft()
        seen = watch.fresh() if watch else {}
        difference, node = _difference(candidate, trial)
        row = _row(candidate, trial, dict(seen), difference, node)
        parts = trial.parts() if trial.parts and difference and not trial.required else []
        if parts:
            todo.extendleft((index, part) for part in reversed(parts))
            continue
        broken = blamed(row, guards) if index else []
        if difference is None:
            verdict.proved.append(trial.case)
        elif trial.required:
            verdict.failure = _failure(trial, difference, node, broken)
            return verdict
        verdict.rows.append(row)
    return verdict


def _row(
    candidate: Candidate, trial: CaptureTrial, seen: Any, difference: str | None, at: Any
) -> TrialRow:
    axes = call_axes(candidate.model, trial.case)
    sizes = {(axis.input, axis.axis): axis.size for axis in axes}
    source = at.meta.get("source", "") if at is not None else ""
    return TrialRow(trial.case.label, trial.groups, sizes, seen, difference, source)


def _finish(
    candidate: Candidate,
    case: Case,
    findings: Findings,
    known: Known,
) -> tuple[Condition, ...]:
    """Let the module itself check what it was captured for."""
    module, forward = candidate.module, candidate.model.forward
    inputs = module.graph.find_nodes(op="placeholder")
    optional = {str(node.target) for node in inputs if node.args == (None,)}
    needed = list(demands(forward, case, optional, known))
    writer = ConditionWriter(module.graph)
    writer.structure(needed)
    writer.sizes(findings.held, findings)
    eliminate_dead(module.graph)
    drop_unused_state(module)
    finish(module)
    return (*(each.condition for each in needed), *(each.condition for each in findings.held))


def _difference(candidate: Candidate, trial: CaptureTrial) -> tuple[str | None, fx.Node | None]:
    try:
        actual = trial.case.run(candidate.module)
    except Exception as error:
        node = failing_node(candidate.model, candidate.module, trial.case)
        return f"the graph fails with {type(error).__name__}: {one_line(error)}", node
    difference = first_difference(trial.expected, actual)
    if difference is None:
        return None, None
    return difference, diverging_node(candidate.model, candidate.module, trial.case)


def contradicted(candidate: Candidate, case: Case) -> list[CaptureGuard]:
    """The guards that do not give their recorded value on `case`."""
    if not candidate.guards:
        return []
    module = guards_module(
        candidate.model, candidate.graph, (guard.node for guard in candidate.guards)
    )
    try:
        values = case.run(module)
    except Exception:
        # The graph does not even run on this case, which the comparison of outputs reports with its
        # node.
        return []
    return [
        guard
        for guard, value in zip(candidate.guards, values, strict=True)
        if first_difference(guard.about.value, value)
    ]


def _failure(
    trial: CaptureTrial, difference: str, node: fx.Node | None, broken: list[CaptureGuard]
) -> CaptureFailure:
    if broken:
        about = broken[0].about
        message = f"the capture rests on a value that {trial.case.label} contradicts"
        notes = (f"on the example {about.why}", f"on {trial.case.label} {difference}")
        return _blame("M006", message, notes, about.site, about.source)
    site, source = (node.meta["site"], node.meta["source"]) if node else ("", "")
    message = f"the captured graph differs from the model on {trial.case.label}"
    return _blame("M005", message, (difference,), site, source)


def _blame(
    code: str, message: str, notes: tuple[str, ...], site: str, source: str
) -> CaptureFailure:
    remedy = (
        "compute it with tensor operations, or move it into a torch.nn leaf module; "
        f"name the inputs that the graph must hold for as {SECOND}"
    )
    return CaptureFailure(
        site, Diagnostic(code, message, labels_of(site, source), notes, (remedy,))
    )
