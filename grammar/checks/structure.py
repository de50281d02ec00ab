"""What a rule must keep to: outputs defined once, one connected pattern, its own kind."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from ..diagnostics import Label, Span
from ..reached import reached
from ..text.references import references
from ..tree import tree as t
from ..tree.clauses import builds, claims, has_exit, over_images, over_ops
from .report import Messages
from .sides import Sides, SideStep

BUDGETS = frozenset(("error", "drift", "drop"))
LOSSY = frozenset(("quantize", "kmeans", "affine", "rank_for_energy", "kaiming", "histogram"))
"""Functions that throw information away: an exact rule has no use for their results."""


def check_discipline(rule: t.Rule, both: Sides, report: Messages) -> None:
    _outputs(rule, both, report)
    _removed(rule, both, report)
    _connected(both, report)
    _wildcards(both, report)
    _cycles(both, report)
    _kind(rule, both, report)


# -- N004, N005, P003 ------------------------------------------------------------------------------


def _outputs(rule: t.Rule, both: Sides, report: Messages) -> None:
    defined = _defined(rule, report)
    if not defined or rule.kind == "observe":
        return
    words = {w.text: w for step in both.left for w in step.words}
    for name in (name for name in both.outputs if name not in defined):
        label = Label(words[name].span, "matched here, read by the rest of the model")
        help = f"define it: `{name} = ...`, or match less"
        message = f"the rewrite does not define the output `{name}`"
        report.error("N004", message, label, help=help)
    inner = sorted(n for n in both.inner & set(defined) if not both.produced[n].shared)
    for name in inner:
        places = Label(defined[name], "returned here"), Label(words[name].span, "matched here")
        help = "an inner value has no reader outside; `shared` allows one"
        message = f"`{name}` is an inner value and is returned too"
        report.warn("P003", message, *places, help=help)


def _defined(rule: t.Rule, report: Messages) -> dict[str, Span]:
    """What the rewrite defines, and where."""
    defined: dict[str, Span] = {}
    for word in (word for build in builds(rule) for word in build.targets):
        first = defined.setdefault(word.text, word.span)
        if first is not word.span:
            places = Label(word.span, "defined again"), Label(first, "defined here")
            report.error("N004", f"`{word}` is defined twice by the rewrite", *places)
    return defined


def _removed(rule: t.Rule, both: Sides, report: Messages) -> None:
    """Reading a matched value whose op goes away, before the rewrite has defined it again."""
    redefined = {w.text for build in builds(rule) for w in build.targets}
    if not redefined & set(both.produced):
        return
    gone = {n for n, step in both.produced.items() if not step.shared}
    for build in builds(rule):
        read = {n: span for n, span, called in references(build.value) if not called}
        for name in read.keys() & gone:
            _reads_removed(both, name, read[name], report)
        gone -= {w.text for w in build.targets}


def _reads_removed(both: Sides, name: str, span: Span, report: Messages) -> None:
    word = next(w for w in both.produced[name].words if w.text == name)
    places = Label(span, "read here"), Label(word.span, "removed with this op")
    help = f"write `shared {name} = ...` in the pattern to keep the op"
    message = f"the rewrite reads `{name}`, which it removes"
    report.error("N005", message, *places, help=help)


# -- P001, P002, P004 ------------------------------------------------------------------------------


def _connected(both: Sides, report: Messages) -> None:
    """Ops that share no value would have to be tried in all combinations."""
    if len(both.left) < 2:
        return
    meets: dict[str, list[SideStep]] = {}
    for step in both.left:
        for name in (*step.results, *step.reads):
            meets.setdefault(name, []).append(step)

    def near(step: SideStep) -> list[SideStep]:  # every value is followed once
        return [o for name in (*step.results, *step.reads) for o in meets.pop(name, ())]

    together = {id(step) for step in reached(both.left[:1], near)}
    apart = next((step for step in both.left if id(step) not in together), None)
    if apart is not None:
        places = Label(apart.whole, "shares no value with"), Label(both.left[0].whole, "this op")
        help = "connect them through a common input or value, or write two rules"
        report.error("P001", "the pattern is not connected", *places, help=help)


def _wildcards(both: Sides, report: Messages) -> None:
    outputs = set(both.outputs)
    for step in both.left:
        if step.is_wildcard and outputs & set(step.results):
            label = Label(step.span, "matches every op of the model")
            help = "name the ops: `(conv2d | linear)`"
            report.warn("P002", "the root of the pattern is a wildcard", label, help=help)


def _cycles(both: Sides, report: Messages) -> None:
    """A value that depends on itself: no graph has one."""
    needs = {id(s): {n for n in s.reads if n in both.produced} for s in both.left}
    sorter = TopologicalSorter(
        {key: {id(both.produced[n]) for n in names} for key, names in needs.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        stuck = next(step for step in both.left if id(step) in error.args[1])
        label = Label(stuck.whole, "its result is among its own inputs")
        report.error("P004", "the pattern can never match: it reads its own result", label)


# -- X001, X002, X003 ------------------------------------------------------------------------------


def _calls(expr: t.Node) -> dict[str, Span]:
    return {name: span for name, span, called in references(expr) if called}


def is_budget(claim: t.Claim) -> bool:
    """Whether a claim bounds the error of the rule."""
    if not isinstance(claim.condition, t.Binary):
        return "equal" in _calls(claim.condition)
    return bool(BUDGETS & set(_calls(claim.condition)))


def _kind(rule: t.Rule, both: Sides, report: Messages) -> None:
    if rule.kind in ("exact", "lossless"):
        _exact(rule, report)
    elif rule.kind == "observe":
        _observing(rule, both, report)
    elif not rule.all(t.MatchDim):
        _approximate(rule, report)


def _exact(rule: t.Rule, report: Messages) -> None:
    place = Label(rule.name.span, f"declared {rule.kind}")
    help = "declare it `approx rule`, or leave this out"
    whole = f"the {rule.kind} rule `{rule.name}`"
    for perturb in rule.all(t.Perturb):
        label = Label(_head(perturb.span, "perturb"), "moves numbers")
        report.error("X001", f"{whole} perturbs", label, place, help=help)
    for clause in over_images(rule):
        label = Label(clause.span, "makes images smaller, which no model is blind to")
        report.error("X001", f"{whole} changes the resolution", label, place, help=help)
    for claim in (c for c in claims(rule) if BUDGETS & set(_calls(c.condition))):
        label = Label(claim.condition.span, "an error budget")
        report.error("X001", f"{whole} claims an error", label, place, help=help)
    called = [
        (c, name, span) for c in rule.all(t.Let, t.Rewrite) for name, span in _calls(c).items()
    ]
    for clause, name, span in called:
        if name in LOSSY and not _is_op(clause, name):
            message = f"{whole} calls `{name}`, which is not exact"
            report.error("X001", message, Label(span, "loses numbers"), place, help=help)


def _is_op(clause: t.Let | t.Rewrite, name: str) -> bool:
    """In `q = quantize(x)` and `r = flip(quantize(x))` of a rewrite the name is an op: what an op
    reads is one; functions give it settings and weights.
    """
    steps = clause.steps if isinstance(clause, t.Rewrite) else ()
    waiting = [step.value for step in steps if isinstance(step, t.Build)]
    for value in waiting:
        if isinstance(value, t.Call):
            if isinstance(value.function, t.Name) and value.function.text == name:
                return True
            waiting += value.args
    return False


def _observing(rule: t.Rule, both: Sides, report: Messages) -> None:
    place = Label(rule.name.span, "declared observe")
    for build in builds(rule):
        if any(w.text in both.produced for w in build.targets):
            message = f"the observe rule `{rule.name}` replaces `{build.targets[0]}`"
            help = "an observer leaves every value as it is: `attach ... on x as c.seen`"
            report.error("X001", message, Label(build.span, "builds here"), place, help=help)
    for perturb in rule.all(t.Perturb):
        label = Label(_head(perturb.span, "perturb"), "moves numbers")
        report.error("X001", f"the observe rule `{rule.name}` perturbs", label, place)


def _approximate(rule: t.Rule, report: Messages) -> None:
    split = bool(rule.all(t.Perturb))
    label = Label(rule.name.span, "declared approx")
    if not any(map(is_budget, claims(rule))):
        help = f"ensure {{ error({'y' if over_ops(rule) else 'outputs'}) <= 5% on calib }}"
        message = f"the approx rule `{rule.name}` has no error budget"
        if split:
            note = "only the budget of a pipeline limits its error"
            report.warn("X002", message, label, note=note, help=help)
        else:
            report.error("X002", message, label, help=help)
    if not split and not has_exit(rule):
        help = "move the change of numbers to `perturb`, so that the rewrite can be proved exact"
        message = f"the approx rule `{rule.name}` is not split"
        report.warn("X003", message, label, help=help)


def _head(span: Span, word: str) -> Span:
    return Span(span.source, span.start, span.start + len(word))
