"""Conditions about the whole model: budgets, `until`, `verify`. Each is measured on the present
graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ...grammar.diagnostics import Label
from ...grammar.library.program import Program
from ...grammar.tree import tree as t
from ...grammar.tree.clauses import functions_in
from ..apply.cost import not_counted, present_costs
from ..graph.snapshot import finish
from ..journal import Costs, Verdict, VerdictKind
from ..measure.compare import Metrics, drift, drift_from, outputs
from ..measure.given import Given
from ..measure.latency import TURNS, Latency, measure_latency
from ..rules.facts import Facts
from ..rules.scope import Scope, shown
from ..rules.state import State, sample_count
from .bound_units import require_possible, require_unit


@dataclass(frozen=True)
class StandIn:
    """A model that conditions are asked of in place of the working one, what it costs, and how many
    milliseconds it takes for the example.
    """

    model: nn.Module
    costs: Costs
    ms: float


class Measures:
    """Asks conditions of one pipeline. Costs before are those of the state at construction."""

    def __init__(
        self, state: State, program: Program, metrics: Metrics, names: Mapping[str, Any]
    ) -> None:
        self.state = state
        self.program = program
        self.metrics = metrics
        self.names = names
        self.original = present_costs(state)
        self.timed: Latency
        self._apart: list[float] | None = None
        self._given: Given | None = None
        self._stand_in: StandIn | None = None

    @contextmanager
    def standing_in(self, model: StandIn) -> Iterator[None]:
        """While it lasts, metrics and costs are those of another model."""
        self._stand_in = model
        try:
            yield
        finally:
            self._stand_in = None

    @property
    def _model(self) -> nn.Module:
        return self.state.module if self._stand_in is None else self._stand_in.model

    @contextmanager
    def of_one_model(self) -> Iterator[None]:
        """While it lasts, the model stays as it is: what was measured of it once is known."""
        self._apart = []
        try:
            yield
        finally:
            self._apart = None

    def judge(
        self, condition: t.Expr, data: t.Word | None, text: str, within: t.Expr | None = None
    ) -> Verdict:
        """Measures one claim about the whole model."""
        found, allowed, holds, samples = self.ask(condition, data, within)
        detail = f"{shown(found)} against {shown(allowed)}" if allowed is not None else shown(found)
        if "latency" in functions_in(condition):
            detail = f"{detail}; {self.timed.how}"
        how = "tested" if samples else "proved"
        numbers = [float(v) if isinstance(v, (int, float)) else None for v in (found, allowed)]
        claim, kind = " ".join(text.split()), VerdictKind.BUDGET
        return Verdict(claim, how, holds, samples, numbers[0], numbers[1], detail, kind=kind)

    def ask(
        self, condition: t.Expr, data: t.Word | None = None, within: t.Expr | None = None
    ) -> tuple[Any, Any, bool, int]:
        """Both sides of a condition, whether it holds, and on how many samples it was measured."""
        self._check_metrics(condition)
        scope = self.scope(data)
        scope.facts.asked = condition
        if within is not None:
            found, allowed = scope.number(condition), scope.number(within)
            return found, allowed, found <= allowed, scope.facts.samples[0]
        if not isinstance(condition, t.Binary):
            found = scope.number(condition)
            return found, None, bool(found), scope.facts.samples[0]
        found, allowed = scope.number(condition.left), scope.number(condition.right)
        if _is_share(condition, found, allowed):
            found = found / self._of_original(condition.left.function.text)  # type: ignore[attr-defined]
        names = scope.child({"_left": found, "_right": allowed})
        left, right = t.Name("_left", span=condition.span), t.Name("_right", span=condition.span)
        holds = bool(names.number(t.Binary(condition.op, left, right, span=condition.span)))
        return found, allowed, holds, scope.facts.samples[0]

    def require_units(self, asked: t.Node) -> None:
        """Raises D008 for an `until` that means a share: it is not reached, and nothing says so."""
        for node in t.walk(asked):
            if isinstance(node, (t.Each, t.Repeat)) and node.until is not None:
                require_unit(node.until, self.original)

    def require_counted(self, asked: t.Node) -> None:
        """Raises R014 where `asked` speaks of multiply-accumulates, and some are not counted."""
        for node in t.walk(asked):
            called = node.function if isinstance(node, t.Call) else None
            ordered = node.order if isinstance(node, t.Each) else None
            names = (n for n in (called, ordered) if isinstance(n, t.Name) and n.text == "macs")
            for name in names if self.original.uncounted else ():
                place = Label(name.span, "a lower bound is all that is known")
                raise not_counted(self.original, place)

    def _check_metrics(self, condition: t.Expr) -> None:
        """Raises D004 for `drop(name)` of a metric that the user did not give."""
        for node in t.walk(condition):
            if not isinstance(node, t.Call) or not isinstance(node.function, t.Name):
                continue
            if node.function.text == "drop" and node.args and isinstance(node.args[0], t.Name):
                name = node.args[0]
                self.metrics.require(self.names.get(name.text, name.text), Label(name.span))

    def scope(self, data: t.Word | None) -> Scope:
        """Names and measurements that conditions of the pipeline may use."""
        known = {name: name for name in self.metrics.metrics}
        scope = self.state.scope({**known, **self.names})
        samples = [0]
        scope.facts = Facts(
            samples=samples,
            before=self.original,
            after=lambda: present_costs(self.state),
            model=None if self._stand_in is None else self._stand_in.costs,
            latency=lambda what: self._latency(what, samples),
            drop=lambda metric: self._drop(metric, data, samples, scope.facts.asked),
            drift=lambda _: self._drift(data, samples),
            error=lambda _: self._drift(data, samples),
        )
        return scope

    def _of_original(self, cost: str) -> float:
        """What a cost was before; the time of the same turns, as a machine has no one speed."""
        return 1e3 * self.timed.before if cost == "latency" else getattr(self.original, cost)

    def _latency(self, what: str, samples: list[int]) -> float:
        """Milliseconds that the model takes for the example inputs, in turns with the original."""
        if self._stand_in is not None and what == "after":
            return self._stand_in.ms
        finish(self.state.module)
        inputs = self.state.samples.inputs
        self.timed = measure_latency(
            self.metrics.original,
            self.state.module,
            inputs,
            seconds=TURNS,
            clock=self.state.clock,
        )
        samples[0] = self.timed.rounds
        return 1e3 * (self.timed.before if what == "before" else self.timed.after)

    def _place(self, data: t.Word | None) -> Label:
        return Label(data.span if data is not None else self.program.file.span)

    def _drop(
        self, metric: str, data: t.Word | None, samples: list[int], asked: t.Expr | None
    ) -> float:
        """How far a metric fell below the original model's."""
        place = self._place(data)
        name = data.text if data is not None else _only_name(self.state)
        batches = self.state.samples.batches(name, place)
        samples[0] = self.state.samples.count(batches)
        finish(self.state.module)
        before = self.metrics.reference(metric, name or "", batches, place)
        if asked is not None:
            require_possible(asked, before)
        return before - self.metrics.value(self._model, metric, batches, place)

    def _drift(self, data: t.Word | None, samples: list[int]) -> float:
        """Relative L2 distance of the outputs from the original model's."""
        samples[0] = sample_count(self.state)
        if data is None:
            return self.calibrated()
        named = self.state.samples.batches(data.text, self._place(data))
        finish(self.state.module)
        args = [self.state.samples.args(batch) for batch in named]
        return drift(self.metrics.original, self._model, args) if args else self.calibrated()

    def calibrated(self) -> float:
        """The same on what sites are measured on."""
        if self._apart:
            return self._apart[0]
        finish(self.state.module)
        given = self._outputs_of_original()
        found = drift_from(given, self.state.module)
        if self._apart is not None:
            self._apart.append(found)
        return found

    def _outputs_of_original(self) -> Given:
        if self._given is None:
            original = self.metrics.original
            data = self.state.samples.calibration(self.state.module)
            self._given = Given(original, partial(outputs, what="the data"), data)
        return self._given


def _only_name(state: State) -> str | None:
    names = list(state.samples.named)
    return names[0] if len(names) == 1 else None


def _is_share(condition: t.Binary, found: Any, allowed: Any) -> bool:
    """`macs(model) <= 45%`: a cost against a share means a share of the original model's cost."""
    return (
        (isinstance(found, int) or "latency" in functions_in(condition.left))
        and isinstance(allowed, float)
        and 0 < allowed <= 1
        and isinstance(condition.right, (t.Frac, t.Name))
        and isinstance(condition.left, t.Call)
    )
