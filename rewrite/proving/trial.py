"""One generated model and one rule: does the rule fire where it must and stay silent where it must,
and does the model still compute the same?
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ...grammar.diagnostics import LissomError, Span
from ...grammar.tree import tree as t
from ..apply.engine import VerifiedRewrite, anchor, apply, ready_at
from ..apply.faulty_sites import model_faults
from ..apply.perturbed import perturbed_model
from ..apply.queries import QUESTIONS
from ..graph.snapshot import finish, snapshot
from ..journal import EXACT, Journal
from ..match.site import Site, examine
from ..measure.compare import distance, model_equality
from ..measure.samples import Samples
from ..measure.twins import KernelFault, faults_text, kernel_faults
from ..rules.binding import OWNERS, PLAN, Bindings, NoMatch, left_for
from ..rules.rule import CompiledRule, compile_rule
from ..rules.state import State
from ..torch_internals import tree_leaves
from .arguments import arguments
from .budget_check import Kept, kept
from .choices.source import ChoiceSource
from .models.builder import ILLEGAL
from .models.generate import generate
from .models.grown import Grown
from .models.pattern_builder import Planted
from .models.variants import variants
from .subject import Subject

FIRED, SILENT, REFUSED = "fired", "silent", "refused"
OPAQUE = "opaque"
KERNEL = "kernel"
"""Left, because a kernel of this processor is wrong: no fault of the rule."""
VACUOUS = "vacuous"
"""Applied in a model that shows nothing: every output is empty, or rounding alone."""
MISSING, NOISY, WRONG, UNSOUND, CRASH = "MISSING", "NOISY", "WRONG", "UNSOUND", "CRASH"
PLANNED = (PLAN, OWNERS)
"""Stages of misses that come up only once the right side is worked out."""
BAD = (MISSING, NOISY, WRONG, UNSOUND, CRASH)
"""Outcomes that show a mistake, in the rule or in the engine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one planted instance.

    condition: the clause that kept a silent rule silent, or the check that failed. kept: how an
    approximate rule kept its budget. elsewhere: the other inputs on which a rewritten model was
    compared, by their kind. faults: the kernels that a site was left for.
    """

    kind: str
    condition: str = ""
    detail: str = ""
    ratio: float = 0.0
    kept: Kept | None = None
    elsewhere: Counter[str] = field(default_factory=Counter)
    faults: tuple[KernelFault, ...] = ()


def model(source: ChoiceSource, subject: Subject, spoil: t.Node | None = None) -> Grown:
    """A model around the rule, with drawn arguments. Raises `Unsuitable`.

    `spoil`: the one condition of the rule's pattern that the model is to violate.
    """
    rule = compile_rule(subject.source, arguments(source, subject.source))
    return generate(source, rule, subject.vocabulary, spoil)


# -- the trial -------------------------------------------------------------------------------------


def state_of(subject: Subject, grown: Grown) -> State:
    samples = Samples(grown.inputs)
    if grown.has_data:
        samples.named["calib"] = [(grown.inputs, None)]
    journal = Journal()
    functions, questions = subject.functions, QUESTIONS
    return subject.observe(
        State(grown.module, subject.vocabulary, functions, questions, samples, journal)
    )


def trial(subject: Subject, grown: Grown, spoiled: bool = False) -> list[Outcome]:
    """One outcome for each planted instance; the model is rewritten on the way.

    `spoiled` says that what was planted is no instance of the pattern.
    """
    state, empty = state_of(subject, grown), grown.is_empty
    outcomes = [_one(state, grown, planted, spoiled) for planted in grown.planted]
    return [
        Outcome(VACUOUS, "every output is empty") if empty and o.kind == FIRED else o
        for o in outcomes
    ]


def _one(state: State, grown: Grown, planted: Planted, spoiled: bool) -> Outcome:
    rule = grown.rule
    bindings = bound(state, rule, planted)
    if isinstance(bindings, str):
        return Outcome(OPAQUE, bindings)
    try:
        start = anchor(state, rule)
        fits = not spoiled and _fits(state, rule, bindings)
        found = ready_at(state, rule, planted.nodes[start.index], start)
        if isinstance(found, VerifiedRewrite):
            if spoiled and not _is_planted(found, planted):
                return Outcome(SILENT, "an instance beside it fits")
            return _applied(state, found, grown.seed)
        if found.faults:
            return blamed(found.faults)
        if found.raised and found.code.startswith("R"):
            return Outcome(UNSOUND, found.code, found.text())
        if fits and found.stage not in PLANNED:
            return Outcome(MISSING, condition(found), found.text())
        return Outcome(REFUSED if fits else SILENT, condition(found), found.text())
    except LissomError as error:
        first = error.diagnostics[0]
        return Outcome(UNSOUND, first.code, "; ".join((first.message, *first.notes)))
    except Exception as error:  # whatever else escapes is a mistake of the engine: a finding
        return Outcome(CRASH, type(error).__name__, traceback.format_exc())


def _fits(state: State, rule: CompiledRule, bindings: Bindings) -> bool:
    """Whether the guards hold; not where the engine leaves a site for numbers that do not fit."""
    try:
        return isinstance(examine(state, rule, bindings), Site)
    except LissomError as error:
        if left_for(error, rule.source.name.span, None) is None:
            raise
        return False


def _is_planted(ready: VerifiedRewrite, planted: Planted) -> bool:
    """Whether the site is the planted one: the model may hold another by chance, with ops that read
    what the planted ones read.
    """
    inside = {*planted.nodes.values(), *(n for chain in planted.chains.values() for n in chain)}
    return all(call.node in inside for call in ready.site.calls)


def bound(state: State, rule: CompiledRule, planted: Planted) -> Bindings | str:
    """What a matcher should find for a planted instance; or why an op of it cannot be read."""
    nodes = [*planted.nodes.values(), *(n for chain in planted.chains.values() for n in chain)]
    for node in nodes:
        if state.view.call(node) is None:
            return f"{node.target}: {state.view.why_opaque(node)}"
    ops = {index: state.view.call(node) for index, node in planted.nodes.items()}
    chains = {i: [state.view.call(node) for node in chain] for i, chain in planted.chains.items()}
    return Bindings(dict(planted.values), ops, chains, dict(rule.args))  # type: ignore[arg-type]


def condition(miss: NoMatch) -> str:
    """Names a condition of the rule: its place in the text, or the code of the engine's own."""
    return miss.code or _place(miss.span) or f"stage {miss.stage}"


def _place(span: Span | None) -> str:
    return "" if span is None else span.flat


def _applied(state: State, ready: VerifiedRewrite, seed: int) -> Outcome:
    """Commits, and compares the whole model with the (perturbed) one before."""
    original = before = snapshot(state.module)
    perturbs = ready.plan.perturbs  # the plan is let go when it is applied
    if perturbs:
        before = perturbed_model(state.module, ready.site, ready.plan)
    judged = [v for v in ready.verdicts if v.kind in EXACT]
    worst = max((v.worst / v.tolerance for v in judged if v.worst and v.tolerance), default=0.0)
    random = is_random(state)
    apply(state, "trial", ready, 0.0)
    finish(state.module)
    if random or (ready.site.rule.kind == "approx" and not perturbs):
        return Outcome(FIRED, ratio=worst)
    inputs = state.samples.inputs
    given, after = run_or_error(before, inputs), run_or_error(state.module, inputs)
    if isinstance(given, Exception):
        return Outcome(VACUOUS, "the model itself cannot run", str(given))
    if isinstance(after, Exception):
        return Outcome(WRONG, "the rewritten model cannot run", str(after).splitlines()[0])
    verdict = model_equality(before, state.module, inputs, len(state.module.graph.nodes))
    faults = () if verdict.holds else model_faults(before, state.module, inputs)
    if faults:
        return blamed(faults)
    if not verdict.holds:
        numbers = f"{verdict.worst} > {verdict.tolerance}; {verdict.detail}"
        return Outcome(WRONG, verdict.claim, numbers)
    if verdict.how == "not checked":
        return Outcome(VACUOUS, "outputs are rounding alone", verdict.detail)
    others = elsewhere(before, state.module, inputs, seed)
    if isinstance(others, Outcome):
        return others
    fired = Outcome(FIRED, ratio=worst, elsewhere=others)
    if not perturbs:
        return fired
    return budgeted(lambda: kept(original, before, ready, inputs), fired)


def elsewhere(
    before: fx.GraphModule, after: fx.GraphModule, inputs: tuple[Any, ...], seed: int
) -> Counter[str] | Outcome:
    """On which other inputs, by kind, two models were compared and agree, or their difference. They
    agree on `inputs`; which others are tried comes from `seed`.
    """
    found = list(_compared(before, after, inputs, seed))
    last = found[-1] if found else None
    return last if isinstance(last, Outcome) else Counter(map(str, found))


def _compared(
    before: fx.GraphModule, after: fx.GraphModule, inputs: tuple[Any, ...], seed: int
) -> Iterator[str | Outcome]:
    """What other inputs that the original takes were compared on; the first mistake ends it."""
    for variant in variants(inputs, seed):
        given = run_or_error(before, variant.inputs)
        if isinstance(given, Exception):  # the original need not take these inputs
            continue
        right, found = f"right at {sizes_of(inputs)}", run_or_error(after, variant.inputs)
        where = variant.numbers or f"at {sizes_of(variant.inputs)}"
        said = _apart(before, after, variant.inputs, given, found)
        if said:
            faults = model_faults(before, after, variant.inputs) if type(found) is list else ()
            wrong = Outcome(WRONG, f"{right}, wrong {where}", said)
            yield blamed(faults) if faults else wrong
            return
        yield variant.numbers or OTHER_SIZES


OTHER_SIZES = "other sizes"


def _apart(
    before: fx.GraphModule,
    after: fx.GraphModule,
    inputs: tuple[Any, ...],
    given: list[Any],
    found: list[Any] | Exception,
) -> str:
    """How two models differ on inputs on which they gave these results; "" where they do not."""
    if isinstance(found, Exception):
        return f"the rewritten model cannot run: {str(found).splitlines()[0]}"
    if len(given) == len(found) and all(map(_same, given, found)):
        return ""
    verdict = model_equality(before, after, inputs, len(after.graph.nodes))
    return "" if verdict.holds else f"{verdict.worst} > {verdict.tolerance}; {verdict.detail}"


def run_or_error(module: fx.GraphModule, inputs: tuple[Any, ...]) -> list[Any] | Exception:
    """The results of a model; the error of one that does not take the inputs."""
    try:
        with torch.no_grad():
            # Called as a module, a graph would print where it failed.
            return tree_leaves(module.forward(*inputs))
    except ILLEGAL as error:
        return error


def _same(left: Any, right: Any) -> bool:
    """Whether two results are the same up to what any rounding may do: this needs no second run."""
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return False
    if left.dtype != right.dtype or not left.is_floating_point():
        return left.dtype == right.dtype and torch.equal(left, right)
    return distance(left, right) <= 32 * torch.finfo(left.dtype).eps


def sizes_of(inputs: tuple[Any, ...]) -> str:
    return ", ".join(str(list(value.shape)) for value in inputs)


def blamed(faults: tuple[KernelFault, ...]) -> Outcome:
    """The site is left for the kernels' sake."""
    return Outcome(
        KERNEL, " and ".join(f.kernel for f in faults), faults_text(faults), faults=faults
    )


def budgeted(measure: Callable[[], Kept | None], fired: Outcome) -> Outcome:
    """What became of an application whose model is equal: it may break its budget."""
    found = measure()
    if found is None or found.holds:
        return replace(fired, kept=found)
    faults = kernel_faults(lambda: (again := measure()) is None or again.holds)
    if faults:
        return blamed(faults)
    return Outcome(WRONG, "budget", f"the error is {found.given:.4g} of its budget")


def is_random(state: State) -> bool:
    """Whether the model draws numbers as it runs: then two runs of it differ by themselves."""
    calls = (state.view.call(node) for node in state.module.graph.nodes)
    return any(
        call is not None
        and ("random" in call.op.traits or "dropout" in call.attrs)
        and all(call.attrs.get(name, True) for name in ("training", "dropout", "dropout_p"))
        for call in calls
    )


def names_types(state: State) -> bool:
    """Whether an op of the model names a type of numbers: then it cannot run in another one."""
    calls = (state.view.call(node) for node in state.module.graph.nodes)
    return any(call is not None and call.op.names_type(call.attrs) for call in calls)
