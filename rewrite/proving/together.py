"""Rules in company: several of them on one model, in any order, until none fires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from ...grammar.diagnostics import LissomError
from ..checkpoint import finish, snapshot
from ..journal import Applied
from ..model_check import model_equality, outputs
from ..rule import compile_rule
from ..strategy import Runner
from .grow import Grown, grow_together
from .source import Source
from .trial import Subject, is_random, state_of


@dataclass(frozen=True, slots=True)
class Company:
    """What became of one model: how often each rule fired, and what was wrong ("" if nothing)."""

    fired: dict[str, int]
    wrong: str = ""


def company(source: Source, subjects: Sequence[Subject]) -> tuple[Grown, list[Subject]]:
    """A model in which each rule has a site, behind one another where that fits, and the rules in a
    drawn order. Raises `Unsuitable`.
    """
    rules = [compile_rule(subject.source, {}) for subject in subjects]
    grown = grow_together(source, rules, subjects[0].vocabulary)
    left, order = list(subjects), []
    while left:
        order.append(left.pop(source.integer(0, len(left) - 1)))
    return grown, order


def try_together(grown: Grown, subjects: Sequence[Subject]) -> Company:
    """Runs the rules in this order to their fixpoint: the model must compute the same, and a second
    run must find nothing.
    """
    state = state_of(subjects[0], grown)
    rules = [compile_rule(s.source, {}, order=number) for number, s in enumerate(subjects)]
    before = snapshot(state.module)
    try:
        Runner(state, "together").fixpoint(rules)
        fired = {rule.name: state.journal.sites(rule.label) for rule in rules}
        again = Runner(state, "again").fixpoint(rules)
        finish(state.module)
    except LissomError as error:
        return Company({}, str(error))
    if again:
        last = state.journal.of(Applied)[-1]
        return Company(fired, f"`{last.rule}` fires again at {last.site}")
    if is_random(state) or not _finite(before, grown):
        return Company(fired)
    nodes = len(before.graph.nodes)
    found = model_equality(before, state.module, grown.inputs, nodes)
    wrong = "" if found.holds else f"{found.worst} > {found.tolerance}; {found.detail}"
    return Company(fired, wrong)


def _finite(module: fx.GraphModule, grown: Grown) -> bool:
    """Whether the model's results are numbers. One rule alone keeps the places of infinities where
    its ops compute element by element; sums of infinities may be merged away.
    """
    results = [value for value in outputs(module, grown.inputs) if isinstance(value, Tensor)]
    return all(bool(value.isfinite().all()) for value in results)
