"""One way of capturing, tried and proven: the outcome is an attempt that holds, or a failure that
says where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..grammar.diagnostics import Diagnostic, Label
from .capture_graph import build, copy_of, guards_module, move_hooks
from .capture_inputs import Case, bind
from .capture_lowering import Untraceable
from .capture_padding import split_padding
from .constants import fold_constants
from .proof import diverging_node, failing_node, first_difference
from .relift import exported
from .runs import innermost, one_line
from .spec import TensorSpec
from .tracer import Guard, Recorder, Specialised

_REMEDY = (
    "move this code into a submodule of its own, which then stays one opaque node (no rule looks "
    "inside, and only torch.save keeps such a result), or capture the part of the model that does "
    "not need it"
)


@dataclass(frozen=True)
class Trial:
    """A case with the eager model's output. A trial that is not required only limits what is
    claimed.
    """

    case: Case
    expected: Any
    required: bool = True


@dataclass(frozen=True)
class Attempt:
    """A captured module that holds on every required trial. whole: what it was made from."""

    module: fx.GraphModule
    how: str
    whole: Candidate
    specialised: tuple[Specialised, ...] = ()
    opaque: tuple[str, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    proved: tuple[Case, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a way of capturing does not hold, and the path of the module that is to blame ("" if none
    is known).
    """

    site: str
    diagnostic: Diagnostic


@dataclass(frozen=True)
class Candidate:
    """A captured module before its proof."""

    model: nn.Module
    module: fx.GraphModule
    graph: fx.Graph
    guards: tuple[Guard, ...] = ()


@dataclass
class Verdict:
    """What the trials say of a candidate."""

    proved: list[Case] = field(default_factory=list)
    notes: list[Diagnostic] = field(default_factory=list)
    failure: Failure | None = None


def by_trace(
    model: nn.Module, trials: Sequence[Trial], opaque: dict[str, str]
) -> Attempt | Failure:
    """Trace `model` on the first trial's case; `opaque` maps paths of modules to keep whole to the
    reason.
    """
    recorder = Recorder(model, frozenset(opaque))
    bound = bind(recorder, trials[0].case.fresh())
    try:
        graph = recorder.trace(*bound.args, **bound.kwargs, **bound.defaults)
    except Exception as error:
        return _broken_trace(recorder, error)
    whole, where = copy_of(graph)
    module = build(model, graph)
    fold_constants(module)
    split_padding(module)
    move_hooks(model, module)
    guards = tuple(Guard(where[guard.node], guard.about) for guard in recorder.guards.values())
    candidate = Candidate(model, module, whole, guards)
    verdict = judge(candidate, trials)
    if verdict.failure:
        return verdict.failure
    return Attempt(
        module,
        "trace with opaque leaves" if opaque else "trace",
        candidate,
        (*bound.fixed, *(guard.about for guard in guards)),
        _opaque(module, opaque),
        (*_data_notes(guards), *verdict.notes),
        tuple(verdict.proved),
    )


def _opaque(module: fx.GraphModule, reasons: dict[str, str]) -> tuple[str, ...]:
    hooked = [str(node.target) for node in module.graph.nodes if node.meta.get("effect")]
    found = dict.fromkeys(hooked, "has hooks or parametrizations") | reasons
    return tuple(f"{path}: {reason}" for path, reason in found.items())


def by_export(model: nn.Module, trials: Sequence[Trial]) -> Attempt | Failure:
    """Let torch.export read the model, and lift its graph back to modules."""
    case = trials[1].case if len(trials) > 1 and trials[1].required else trials[0].case
    try:
        lifted = exported(model, case)
    except Exception as error:
        return Failure("", Diagnostic("M004", f"torch.export fails: {one_line(error)}"))
    module = build(model, lifted.graph)
    fold_constants(module)
    split_padding(module)
    candidate = Candidate(model, module, module.graph)
    verdict = judge(candidate, trials)
    if verdict.failure:
        return verdict.failure
    notes, proved = tuple(verdict.notes), tuple(verdict.proved)
    return Attempt(module, "export", candidate, lifted.fixed, (), notes, proved)


def _broken_trace(recorder: Recorder, error: Exception) -> Failure:
    reason, _, remedy = str(error).partition("\n")
    if not isinstance(error, Untraceable):
        reason, remedy = f"{type(error).__name__}: {one_line(error)}", ""
    site = recorder.failed[1] if recorder.failed[0] is error else ""
    owner = f"`{site}`" if site else "the model"
    return Failure(
        site,
        Diagnostic(
            "M004",
            f"{owner} cannot be traced: {reason}",
            (Label(None, where=_where(site, innermost(error) or recorder.last_source)),),
            (),
            (remedy or _REMEDY,),
        ),
    )


def _where(site: str, source: str) -> str:
    return f"{site} ({source})" if site and source else site or source


def _reads_data(guard: Guard) -> bool:
    """True if a guard's value follows from what a tensor holds, not from its shape."""
    todo = [guard.node]
    while todo:
        node = todo.pop()
        if isinstance(node.meta["val"], TensorSpec):
            return True
        if node.target not in ("size", "numel", "nelement"):
            todo += node.all_input_nodes
    return False


def _data_notes(guards: Sequence[Guard]) -> tuple[Diagnostic, ...]:
    """M006 as a warning where values in the example decided what the graph does."""
    found = [guard.about for guard in guards if _reads_data(guard)]
    if not found:
        return ()
    return (
        Diagnostic(
            "M006",
            "values in the example decided what the graph does; other values may need another",
            tuple(Label(None, where=_where(about.site, about.source)) for about in found),
            tuple(about.why for about in found),
            ("give an example for which these answers are the ones you need",),
            "warning",
        ),
    )


def judge(candidate: Candidate, trials: Sequence[Trial]) -> Verdict:
    """Run a candidate on every trial. Stops at the first required trial that it fails."""
    verdict = Verdict()
    for index, trial in enumerate(trials):
        broken = contradicted(candidate, trial.case) if index else []
        difference, node = _difference(candidate, trial)
        if difference is None:
            verdict.proved.append(trial.case)
            verdict.notes += [_harmless(trial, guard) for guard in broken[:1]]
            continue
        failure = _failure(trial, difference, node, broken)
        if trial.required:
            verdict.failure = failure
            return verdict
        verdict.notes.append(_limited(trial, failure))
    return verdict


def _difference(candidate: Candidate, trial: Trial) -> tuple[str | None, fx.Node | None]:
    try:
        actual = trial.case.run(candidate.module)
    except Exception as error:
        node = failing_node(candidate.model, candidate.module, trial.case)
        return f"the graph fails with {type(error).__name__}: {one_line(error)}", node
    difference = first_difference(trial.expected, actual)
    if difference is None:
        return None, None
    return difference, diverging_node(candidate.model, candidate.module, trial.case)


def contradicted(candidate: Candidate, case: Case) -> list[Guard]:
    """The guards that do not give their recorded value on `case`."""
    if not candidate.guards:
        return []
    module = guards_module(candidate.model, candidate.graph, candidate.guards)
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


def _failure(trial: Trial, difference: str, node: fx.Node | None, broken: list[Guard]) -> Failure:
    if broken:
        about = broken[0].about
        message = f"the capture rests on a value that {trial.case.label} contradicts"
        notes = (f"on the example {about.why}", f"on {trial.case.label} {difference}")
        return _blame("M006", message, notes, about.site, about.source)
    site, source = (node.meta["site"], node.meta["source"]) if node else ("", "")
    message = f"the captured graph differs from the model on {trial.case.label}"
    return _blame("M005", message, (difference,), site, source)


def _blame(code: str, message: str, notes: tuple[str, ...], site: str, source: str) -> Failure:
    remedy = (
        "compute it with tensor operations, or move it into a torch.nn leaf module; "
        "`second=` names the inputs that the graph must hold for"
    )
    where = (Label(None, where=_where(site, source)),) if site or source else ()
    return Failure(site, Diagnostic(code, message, where, notes, (remedy,)))


def _harmless(trial: Trial, guard: Guard) -> Diagnostic:
    about = guard.about
    return Diagnostic(
        "M006",
        f"{trial.case.label} contradicts a recorded value, yet the outputs are equal",
        (Label(None, where=_where(about.site, about.source)),),
        (f"on the example {about.why}",),
        severity="warning",
    )


def _limited(trial: Trial, failure: Failure) -> Diagnostic:
    found = failure.diagnostic
    return Diagnostic(
        found.code,
        f"the graph holds for the example's size only, not for {trial.case.label}",
        found.labels,
        found.notes,
        ("capture again for each size you need",),
        "warning",
    )
