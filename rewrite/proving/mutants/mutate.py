"""The mutation score: does the verification notice mistakes in this rule?

Every mutant of a rule is tried on models on which the rule itself applies. It is killed by the
engine if that refuses what the rule may do, by the model if the engine lets it pass and the whole
model then computes something else, by the checker if no model tells it apart. What plans the same
wherever it was tried is no mistake; what else survives is one that nobody would notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from ....grammar.checks.check import check
from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...apply.engine import VerifiedRewrite, anchor, apply, ready_at
from ...apply.perturbed import perturbed_model
from ...graph.runs import RunFailed
from ...graph.snapshot import finish
from ...journal import EXACT
from ...measure.compare import distance, outputs
from ...measure.twins import FAULTY
from ...rules.binding import NoMatch
from ...rules.rule import CompiledRule, compile_rule
from ...rules.state import State
from ..choices.source import Unsuitable
from ..models.double import in_double
from ..models.grown import Grown
from ..subject import Subject
from ..trial import condition, names_types, state_of
from .mutants import Mutant, mutants
from .same import same_plan
from .spoiling import MUTATION_FUNCTIONS

Found = TypeVar("Found")
ENGINE, MODEL, CHECKER = "engine", "model", "checker"
SAME = "no mistake"

WANTED = 64
"""On how many models a mutant is tried at most."""

AGREES = 1e-9
"""Relative L2 distance of two models in float64 that compute the same."""

# -- models on which a rule applies ----------------------------------------------------------------


@dataclass
class Specimen:
    """A model on which a rule applies. `again` grows it anew, for trials that change it."""

    subject: Subject
    again: Callable[[], Grown]
    verify: bool = True

    @cached_property
    def grown(self) -> Grown:
        return self.again()

    @cached_property
    def state(self) -> State:
        return self._state(self.grown)

    def ready(self, source: t.Rule) -> VerifiedRewrite | str:
        """What the engine says to another text of the rule. Nothing is changed."""
        return _attempt(self.state, self.grown, self._compiled(source))

    def apart(self, source: t.Rule) -> float | None:
        """How far the model moves in float64 when this text is applied without any verification;
        None where it cannot be applied, or promises nothing about the whole model.
        """
        if names_types(self.state):  # what a cast makes of float64 is no float64
            return None
        grown = in_double(self.again())
        state = self._state(grown)
        state.verify = False
        found = _attempt(state, grown, self._compiled(source))
        if isinstance(found, str) or (grown.rule.kind == "approx" and not found.plan.perturbs):
            return None
        before = perturbed_model(state.module, found.site, found.plan)
        apply(state, "mutant", found, 0.0)
        finish(state.module)
        return _farthest(before, state.module, grown.inputs)

    @cached_property
    def applied(self) -> VerifiedRewrite | str:
        """As `ready`, of the rule itself."""
        return self.ready(self.subject.source)

    @cached_property
    def own(self) -> float | None:
        """As `apart`, of the rule itself: what its rounding makes of this model."""
        return self.apart(self.subject.source)

    def _compiled(self, source: t.Rule) -> CompiledRule:
        return compile_rule(source, self.grown.rule.given)

    def _state(self, grown: Grown) -> State:
        functions = {**self.subject.functions, **MUTATION_FUNCTIONS}
        state = state_of(replace(self.subject, functions=functions), grown)
        state.verify = self.verify
        return state


def _attempt(state: State, grown: Grown, rule: CompiledRule) -> VerifiedRewrite | str:
    """An application at the first instance; or the condition that says no."""
    start = anchor(state, rule)
    found = ready_at(state, rule, grown.planted[0].nodes[start.index], start)
    return found if isinstance(found, VerifiedRewrite) else condition(found)


def _farthest(before: nn.Module, after: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Infinite where the second model cannot run."""
    wanted = outputs(before, inputs)
    try:
        found = outputs(after, inputs)
    except RunFailed:
        return math.inf
    pairs = zip(wanted, found, strict=True)
    tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return max((_distance(a, b) for a, b in tensors), default=0.0)


def _distance(before: Tensor, after: Tensor) -> float:
    """Relative L2; 0 or infinite for what is not floating."""
    if before.is_floating_point():
        return distance(before, after)
    return 0.0 if torch.equal(before, after) else math.inf


def specimens(
    subject: Subject,
    models: Iterable[Callable[[], Grown]],
    wanted: int = WANTED,
    verify: bool = True,
) -> list[Specimen]:
    """The first of `models` on which the rule applies."""
    found: list[Specimen] = []
    for again in models:
        specimen = Specimen(subject, again, verify)
        if _applies(specimen):
            found.append(specimen)
        if len(found) == wanted:
            break
    return found


def _applies(specimen: Specimen) -> bool:
    """A draw that leads nowhere, and a rule that breaks its own promise there, are not for here."""
    try:
        return isinstance(specimen.applied, VerifiedRewrite)
    except (Unsuitable, LissomError):
        return False


# -- killing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a mutant.

    by: what killed it ("engine", "model", "checker"), nothing, or that it is no mistake. reason: a
    code, or the numbers. sample: which model told it apart; of a survivor the closest call, where
    the difference was `ratio` of what is allowed. None where there was no model.
    """

    mutant: Mutant
    by: str
    reason: str
    sample: int | None = None
    ratio: float = 0.0

    @property
    def found(self) -> tuple[str, str, int | None, float]:
        """Everything but the mutant itself, which need not be sent to another process."""
        return self.by, self.reason, self.sample, self.ratio

    @property
    def killed(self) -> bool:
        return self.by not in ("", SAME)


def kill(mutant: Mutant, samples: Sequence[Specimen]) -> Fate:
    """Tries a mutant on models on which the rule itself applies, until one tells them apart."""
    fates = [Fate(mutant, "", "no model on which the rule applies")]
    same = bool(samples)
    for judge in (_by_engine, _by_model):
        for index, specimen in enumerate(samples):
            fates.append(judge(mutant, specimen, index))
            if fates[-1].killed:
                return fates[-1]
        same = same and all(fate.by == SAME for fate in fates[1:])
        if same:
            break
    closest = max(fates[1:] or fates, key=lambda fate: fate.ratio)
    return _by_checker(mutant, samples) or replace(closest, by=SAME if same else "")


RAISED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a senseless mutant, a stride of 0 say, may make torch raise."""


def readied(
    mutant: Mutant, ready: Callable[[t.Rule], Found | NoMatch | str], index: int
) -> Found | Fate:
    """The mutant's application at a specimen; its fate where the engine has none."""
    try:
        found = ready(mutant.source)
    except LissomError as error:
        first = error.diagnostics[0]
        return Fate(mutant, ENGINE, f"{first.code}: {first.message}", index)
    except RAISED as error:
        return Fate(mutant, ENGINE, f"{type(error).__name__}: {error}", index)
    if isinstance(found, (str, NoMatch)):
        said = found if isinstance(found, str) else condition(found)
        if said == FAULTY:
            return Fate(mutant, "", "a kernel of this processor is wrong there", index)
        return Fate(mutant, ENGINE, f"no longer applies: {said}", index)
    return found


def _by_engine(mutant: Mutant, specimen: Specimen, index: int) -> Fate:
    found = readied(mutant, specimen.ready, index)
    if isinstance(found, Fate):
        return found
    exact = [v for v in found.verdicts if v.kind in EXACT]
    ratio = max((v.worst / v.tolerance for v in exact if v.worst and v.tolerance), default=0.0)
    own = specimen.applied
    by = SAME if isinstance(own, VerifiedRewrite) and same_plan(own.plan, found.plan) else ""
    return Fate(mutant, by, f"{ratio:.2g} of the allowed difference", index, ratio)


def _by_model(mutant: Mutant, specimen: Specimen, index: int) -> Fate:
    """Judged against what the rule itself does to the same model."""
    own = specimen.own
    found = None if own is None else specimen.apart(mutant.source)
    if own is None or found is None:
        return Fate(mutant, "", "nothing is promised about the whole model", index)
    ratio = found / max(AGREES, 100 * own)
    text = f"the model moves by {found:.2g}, with the rule itself by {own:.2g}"
    return Fate(mutant, MODEL if ratio > 1 else "", text, index, ratio)


def _by_checker(mutant: Mutant, samples: Sequence[Specimen]) -> Fate | None:
    """Whether the static checker finds an error that the rule does not have. It knows no functions
    that only mutants call, so it is asked about other mutants only.
    """
    called = {n.text for n in t.walk(mutant.source) if isinstance(n, t.Name)}
    if not samples or called & MUTATION_FUNCTIONS.keys():
        return None
    subject = samples[0].subject
    if _errors(subject.source, subject):
        return None
    found = _errors(mutant.source, subject)
    return Fate(mutant, CHECKER, f"{found[0]}") if found else None


def _errors(rule: t.Rule, subject: Subject) -> list[str]:
    found = check(t.File((rule,), span=rule.span), subject.vocabulary.declarations)
    return [f"{d.code}: {d.message}" for d in found if d.severity == "error"]


# -- the score -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """The mutants of one rule, and what became of each. `samples`: how many models there were."""

    fates: tuple[Fate, ...]
    samples: int

    @classmethod
    def of(cls, fates: Iterable[Fate], samples: int) -> Score:
        return cls(tuple(fate for fate in fates if fate.by != SAME), samples)

    @property
    def killed(self) -> int:
        return sum(fate.killed for fate in self.fates)

    @property
    def survivors(self) -> tuple[Fate, ...]:
        return tuple(fate for fate in self.fates if not fate.killed)

    @property
    def by(self) -> Mapping[str, int]:
        """How many each judge killed."""
        judges = (ENGINE, MODEL, CHECKER)
        return {judge: sum(fate.by == judge for fate in self.fates) for judge in judges}


def score(subject: Subject, samples: Sequence[Specimen]) -> Score:
    """Tries every mutant of a rule on models on which the rule applies."""
    found = mutants(subject.source, subject.vocabulary)
    return Score.of((kill(mutant, samples) for mutant in found), len(samples))
