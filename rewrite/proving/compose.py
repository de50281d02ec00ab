"""Rules in company: several of them on one model, in any order, until none fires."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from ...grammar.diagnostics import LissomError
from ..apply.faulty_sites import model_faults
from ..graph.snapshot import finish, snapshot
from ..journal import Applied
from ..measure.compare import model_equality, outputs
from ..measure.twins import KernelFault
from ..pipeline.strategy import Runner
from ..rules.rule import compile_rule
from .choices.source import ChoiceSource
from .models.double import in_double
from .models.generate import generate_together
from .models.grown import Grown
from .subject import Subject
from .trial import is_random, state_of
from .worker import Died, Worker


@dataclass(frozen=True, slots=True)
class Company:
    """What became of one model: how often each rule fired, and what was wrong ("" if nothing).

    `vacuous`: the outputs are rounding alone and show nothing. `imprecise`: what the check of the
    whole model says where it refuses the rewrites, though in float64 the same ones keep the model.
    Each of them stays within what rounding allows at its site; together they lose precision.
    `faults`: the kernels whose mistakes make the model differ. `died`: how the process ended in
    which the model was tried.
    """

    fired: dict[str, int]
    wrong: str = ""
    vacuous: bool = False
    imprecise: str = ""
    faults: tuple[KernelFault, ...] = ()
    died: str = ""


def company(source: ChoiceSource, subjects: Sequence[Subject]) -> tuple[Grown, list[Subject]]:
    """A model in which each rule has a site, behind one another where that fits, and the rules in a
    drawn order. Raises `Unsuitable`.
    """
    rules = [compile_rule(subject.source, {}) for subject in subjects]
    grown = generate_together(source, rules, subjects[0].vocabulary)
    left, order = list(subjects), []
    while left:
        order.append(left.pop(source.integer(0, len(left) - 1)))
    return grown, order


def try_together(grown: Grown, subjects: Sequence[Subject]) -> Company:
    """Runs the rules in this order to their fixpoint: the model must compute the same, and a second
    run must find nothing.
    """
    twin = replace(grown, module=copy.deepcopy(grown.module))
    found = _together(grown, subjects)
    if not found.imprecise:
        return found
    wide = _together(in_double(twin), subjects)
    if wide.fired == found.fired and not wide.wrong and not wide.imprecise:
        return found
    return Company(found.fired, found.imprecise)


def isolated(worker: Worker, *args: Any) -> Company | None:
    """What a worker finds out about one model, which may end its process."""
    try:
        return worker(*args)
    except Died as death:
        return Company({}, died=str(death))


def _together(grown: Grown, subjects: Sequence[Subject]) -> Company:
    """Takes every difference of the outputs for a loss of precision."""
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
    found = model_equality(before, state.module, grown.inputs, len(before.graph.nodes))
    if found.holds:
        return Company(fired, vacuous=found.how == "not checked")
    faults = model_faults(before, state.module, grown.inputs)
    if faults:
        return Company(fired, faults=faults)
    return Company(fired, imprecise=f"{found.worst} > {found.tolerance}; {found.detail}")


def _finite(module: fx.GraphModule, grown: Grown) -> bool:
    """Whether the model's results are numbers. One rule alone keeps the places of infinities where
    its ops compute element by element; sums of infinities may be merged away.
    """
    results = [value for value in outputs(module, grown.inputs) if isinstance(value, Tensor)]
    return all(bool(value.isfinite().all()) for value in results)
