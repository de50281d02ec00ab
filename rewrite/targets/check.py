"""Verifying rules over the whole model: a changed model beside the one that it stands for, and what
the rule promises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import fx, nn

from ...grammar.diagnostics import Label, LissomError, fail
from ..apply.claims import judge_claims
from ..apply.cost import model_costs
from ..apply.faulty_sites import run_both
from ..graph.index import GraphView
from ..graph.runs import RunFailed
from ..graph.snapshot import finish
from ..journal import Costs, Verdict, VerdictKind
from ..measure.compare import drift_from, equality_at
from ..measure.latency import TURNS, Saving, measure_latency, model_times, saving_of
from ..measure.samples import Example, numbers_in
from ..measure.twins import FAULTY, faults_text, kernel_faults
from ..rules.binding import PLAN, NoMatch, left_for
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State, sample_count
from .target import Target


def miss(
    rule: CompiledRule, stage: int, text: str, code: str = "R012", node: fx.Node | None = None
) -> NoMatch:
    return NoMatch(stage, 0, lambda: text, rule.source.name.span, node, code)


class CutSite(Protocol):
    """Where a rule ranges over something, and its guards hold."""

    rule: CompiledRule
    scope: Scope

    @property
    def name(self) -> str: ...


S = TypeVar("S", bound=CutSite)


@dataclass
class CutTrial(ABC, Generic[S]):
    """A changed model, `view`, beside the model that it stands for."""

    state: State
    site: S
    view: GraphView = field(init=False)

    claim: ClassVar[str]
    remedy: ClassVar[str]

    @abstractmethod
    def perturbed(self) -> nn.Module:
        """What the changed model must equal."""

    @abstractmethod
    def left(self) -> dict[str, Any]:
        """What names of the rule mean afterwards, where that is something else."""

    @cached_property
    def reference(self) -> nn.Module:
        return self.perturbed()

    @cached_property
    def costs(self) -> tuple[Costs, Costs]:
        return model_costs(self.state.module, self.state.view), model_costs(self.after, self.view)

    @property
    def after(self) -> fx.GraphModule:
        return self.view.root

    def unchanged(self) -> fx.GraphModule:
        """The model itself: what a rule that perturbs nothing must not change."""
        finish(self.state.module)
        return self.state.module

    def equality(self) -> Verdict:
        nodes, examples = len(self.after.graph.nodes), self.examples()
        try:
            found = equality_at(self.reference, self.after, examples, nodes)
        except RunFailed as error:
            # What the change stands for may refuse a size that the model took: a graph checks what
            # it was captured for, and there is nothing to compare with.
            if error.model is not self.reference or len(examples) == 1:
                raise
            found = equality_at(self.reference, self.after, examples[:1], nodes)
        return replace(found, claim=self.claim)

    def unsplit(self) -> Verdict:
        """In place of `equality`, where an approximate rule says only what becomes of the model."""
        said = "the rule has no `perturb`: only its error is measured"
        return Verdict(self.claim, "not checked", True, detail=said, kind=VerdictKind.EQUALITY)

    def run(self) -> None:
        """Runs both models on what they are compared on."""
        run_both(self.reference, self.after, self.examples())

    def examples(self) -> tuple[Example, ...]:
        """The example, and one of another size that is no larger: a stage has many cuts. When it
        ends, the model is run on all.
        """
        first, *others = self.state.samples.examples
        cheap = [other for other in others if numbers_in(other) <= numbers_in(first)]
        return (first, *sorted(cheap, key=numbers_in)[:1])

    def claims(self) -> tuple[Verdict, ...]:
        samples = [0]
        measured = {
            "error": lambda value: self._error(samples),
            "latency": lambda what: self._latency(what, samples),
            "equal": lambda value: self.equality().worst,
        }
        return promised(self.site, self.left(), *self.costs, samples, measured)

    def _latency(self, what: str, samples: list[int]) -> float:
        """Milliseconds that the model takes for the example inputs, before or after."""
        inputs, clock = self.state.samples.inputs, self.state.clock
        timed = measure_latency(self.unchanged(), self.after, inputs, seconds=TURNS, clock=clock)
        samples[0] = timed.rounds
        return 1e3 * (timed.before if what == "before" else timed.after)

    def saving(self) -> Saving:
        """What the whole model takes less for the example inputs."""
        inputs, clock = self.state.samples.inputs, self.state.clock
        both = self.unchanged(), self.after
        return saving_of(model_times(*both, inputs, seconds=TURNS, clock=clock))

    def _error(self, samples: list[int]) -> float:
        samples[0] = sample_count(self.state)
        return self.drift

    @property
    def is_measured(self) -> bool:
        """Whether it is known how far the outputs move."""
        return "drift" in vars(self)

    @cached_property
    def drift(self) -> float:
        """How far the perturbation moves the model's outputs, on calibration data: relative L2."""
        return drift_from(self.state.given(), self.reference)

    def cannot_run(self, error: RunFailed) -> NoMatch:
        """The reason, where what the change stands for refuses to run: a norm over a single number.
        Raises the error where it is the change itself, which then is wrong.
        """
        if error.model is not self.reference:
            raise error
        return miss(self.site.rule, PLAN, f"what is left cannot run: {error.reason}", "R013")


Tr = TypeVar("Tr", bound=CutTrial[Any])


@dataclass(slots=True)
class Change(Generic[Tr]):
    """A change that waits to be verified and committed; `trial` is None once it was let go.
    asks_model: the rule asked something of the whole model.
    """

    trial: Tr | None
    before: Costs
    after: Costs
    when: int
    asks_model: bool
    verdicts: tuple[Verdict, ...] = ()
    timed: Saving | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, trial: Tr) -> Self:
        """The change that a trial is about; costs are those of the whole model."""
        asks_model = "model" in trial.site.scope.asked
        return cls(trial, *trial.costs, trial.state.changes.now, asks_model)

    @property
    def held(self) -> bool:
        return self.trial is not None

    @property
    def site(self) -> CutSite:
        return self.tried.site

    @property
    def node(self) -> fx.Node | None:
        """The node to point at where it is refused, if there is one."""
        return None

    @property
    def tried(self) -> Tr:
        assert self.trial is not None, "it was let go"
        return self.trial

    @property
    def model(self) -> fx.GraphModule:
        return self.tried.after

    @property
    def saving(self) -> int:
        return self.before.params - self.after.params

    @property
    def sensitivity(self) -> float:
        """How far it moves the model's outputs on calibration data, relative L2."""
        return self.tried.drift


P = TypeVar("P")
C = TypeVar("C", bound=Change[Any])


class WholeTarget(Target[P, C]):
    """What changes the whole model: each candidate is weighed on a changed model of its own, and
    verified, which runs both, only where it is wanted.
    """

    def measure(self, ready: C) -> C | NoMatch:
        def measured() -> C | NoMatch:
            self.state.given().hold()
            try:
                _ = ready.tried.drift
            except RunFailed as error:
                return ready.tried.cannot_run(error)
            return ready

        return self._or_reason(measured, ready.node)

    def time(self, ready: C) -> C | NoMatch:
        def timed() -> C | NoMatch:
            try:
                ready.timed = ready.timed or ready.tried.saving()
            except RunFailed as error:
                return ready.tried.cannot_run(error)
            return ready

        return self._or_reason(timed, ready.node)

    def verify(self, ready: C) -> C | NoMatch:
        """Raises V101 if the changed model does not do what the rule says."""
        if ready.verdicts:
            return ready

        def verified() -> C | NoMatch:
            verdicts = judged(ready.tried)
            if isinstance(verdicts, NoMatch):
                return verdicts
            ready.verdicts = verdicts
            return ready

        return self._or_reason(verified, ready.node)

    def may_outgrow(self, ready: C) -> bool:
        return ready.asks_model and ready.when != self.state.changes.now

    def forget(self, ready: C) -> None:
        ready.trial = None

    def _or_reason(
        self, ask: Callable[[], T | NoMatch], node: fx.Node | None = None
    ) -> T | NoMatch:
        """The answer; an error that is no mistake of the rule becomes a reason."""
        try:
            return ask()
        except LissomError as error:
            left = left_for(error, self.rule.source.name.span, node)
            if left is None:
                raise
            return left


T = TypeVar("T")


def promised(
    site: CutSite,
    left: Mapping[str, Any],
    before: Costs,
    after: Costs,
    samples: list[int],
    measured: Mapping[str, Any],
) -> tuple[Verdict, ...]:
    """A verdict for each claim of the rule. left: what its names mean afterwards. measured: what
    claims may ask besides costs; `samples` says on how many samples.
    """
    scope = site.scope.child(left)
    # Facts of its own: they hold the trial, and the site must not hold them.
    scope.facts = replace(site.scope.facts, before=before, after=after, **measured)
    return judge_claims(scope, site.rule.claims, samples)


def broken_claim(rule: CompiledRule, claims: Iterable[Verdict]) -> NoMatch | None:
    """The first promise that the rule does not keep."""
    broken = next((verdict for verdict in claims if not verdict.holds), None)
    if broken is None:
        return None
    return miss(rule, PLAN, f"`{broken.claim}` does not hold: {broken.detail}", "B001")


def judged(trial: CutTrial[Any]) -> tuple[Verdict, ...] | NoMatch:
    """What is known of a changed model; the reason where it cannot run or breaks a claim. Raises
    V101 if it is not what the rule says.
    """
    if not trial.state.verify:
        return ()
    rule = trial.site.rule
    try:
        equal = trial.equality()
    except RunFailed as error:
        return trial.cannot_run(error)
    if not equal.holds:
        faults = kernel_faults(lambda: trial.equality().holds, trial.run)
        if faults:
            return replace(miss(rule, PLAN, faults_text(faults), FAULTY), faults=faults)
        raise _unsound(trial, equal)
    claims = trial.claims()
    return broken_claim(rule, claims) or (equal, *claims)


def _unsound(trial: CutTrial[Any], verdict: Verdict) -> Exception:
    rule = trial.site.rule
    place = Label(rule.source.name.span, "this rule")
    numbers = f"largest difference {verdict.worst:.3g}, allowed {verdict.tolerance:.3g}"
    note = f"at {trial.site.name}: {verdict.claim}: {numbers}; {verdict.detail}"
    message = f"`{rule.name}` does not compute the same"
    return fail("V101", message, place, note=note, help=trial.remedy)
