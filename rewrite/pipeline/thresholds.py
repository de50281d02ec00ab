"""`exit on valid until drop(accuracy) <= 0.1%`: thresholds of exits from data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t
from ..apply.cost import node_macs, present_costs
from ..exits.fit import Choice, Fit, seen
from ..exits.parts import Parts
from ..exits.rows import behind_exits
from ..exits.segments import early_exit
from ..graph.exits import exits_of, set_limit
from ..graph.snapshot import finish
from ..journal import ExitRow, ExitsFitted, Note
from ..measure.batches import batch_size
from ..rules.state import State
from .budgets import Measures, StandIn, functions_in

COSTS = frozenset({"macs", "latency"})
_COMPARED = ("<", "<=", ">", ">=")
_JOINED = {"and": all, "or": any}


def fit_exits(state: State, measures: Measures, item: t.ExitOn) -> ExitsFitted | None:
    """Chooses thresholds on the data that the statement names, and writes them into the graph. They
    stay as they are where no thresholds do what is asked (F111). Raises F112 without an exit.
    """
    begun, place = time.perf_counter(), Label(item.span)
    if not exits_of(state.module.graph):
        hint = 'add one in front of this: stage exits { once exit_head at "layer2" }'
        raise fail("F112", "the model has no exit", place, help=hint)
    finish(state.module)
    network = early_exit(state.module, behind_exits(state.module, state.samples.examples))
    batches = state.samples.batches(item.data.text, place)
    held = seen(network, [args for args in map(state.samples.args, batches) if batch_size(args)])
    if not held:
        raise fail("D002", f"`{item.data.text}` holds no sample", place)
    asked = _Asked(state, measures, item, batches)
    timed = [part for part in asked.parts if "latency" in functions_in(part)]
    if timed:
        measures.ask(timed[0], item.data)  # what the original takes, in turns
        asked.times = network.measure(*state.samples.inputs)
    costs = list(depth_costs(state))
    by_score = not COSTS.isdisjoint(functions_in(item.condition))
    fit = Fit(network, held, costs, asked.judge, by_score)
    best = fit.run()
    if best is None:
        text = f"no thresholds of exits hold `{item.condition.span.flat}`: they stay as they are"
        state.journal.add(Note("", "F111", text))
        return None
    _write(state, best)
    found = _event(state, item, fit, best, asked.name, time.perf_counter() - begun)
    state.journal.add(found)
    return found


def _comparisons(asked: t.Expr) -> Iterator[t.Binary]:
    """Those that a condition joins. Raises R001 for what compares nothing."""
    if isinstance(asked, t.Binary) and asked.op in _JOINED:
        yield from (*_comparisons(asked.left), *_comparisons(asked.right))
        return
    if isinstance(asked, t.Binary) and asked.op in _COMPARED:
        yield asked
        return
    message = f"`{asked.span.flat}` compares nothing, so no thresholds follow from it"
    hint = "say what has to hold: accuracy >= 99%, drop(accuracy) <= 0.2%, macs(model) <= 40%"
    raise fail("R001", message, Label(asked.span), help=hint)


class _Asked:
    """What is asked of a model with thresholds, and the metric that else decides."""

    def __init__(
        self, state: State, measures: Measures, item: t.ExitOn, batches: Sequence[Any]
    ) -> None:
        self.state, self.measures, self.item, self.batches = state, measures, item, batches
        self.parts = list(_comparisons(item.condition))
        self.name = next(iter(measures.metrics.metrics), "")
        self.times: Sequence[float] = ()

    def judge(self, model: nn.Module, macs: float, shares: Sequence[float]) -> tuple[bool, float]:
        ms = sum(share * time for share, time in zip(shares, self.times, strict=False))
        costs = replace(present_costs(self.state), macs=round(macs))
        stand_in = StandIn(model, costs, ms)
        with self.measures.standing_in(stand_in):
            holds = self._holds(model, self.item.condition)
        return holds, self._metric(model, self.name) if self.name else math.nan

    def _holds(self, model: nn.Module, asked: Any) -> bool:
        """`accuracy >= 99%` speaks of a metric by its name, all else of the model."""
        if asked.op in _JOINED:
            return _JOINED[asked.op](self._holds(model, p) for p in (asked.left, asked.right))
        names = {side.text for side in (asked.left, asked.right) if isinstance(side, t.Name)}
        if names.isdisjoint(self.measures.metrics.metrics):
            return self.measures.ask(asked, self.item.data)[2]
        values = {
            name: self._metric(model, name) for name in names & {*self.measures.metrics.metrics}
        }
        return bool(self.measures.scope(None).child(values).number(asked))

    def _metric(self, model: nn.Module, name: str) -> float:
        place = Label(self.item.span)
        return self.measures.metrics.value(model, name, self.batches, place)


def depth_costs(state: State) -> Iterator[float]:
    """Multiply-accumulates up to each depth at the example's batch: bodies, and the heads that were
    asked on the way.
    """
    parts, total = Parts.of(state.module), 0
    own = {node.name: node for node in state.module.graph.nodes}
    for at in range(len(parts.exits) + 1):
        total += sum(node_macs(state.view, own[node.name]) for node in parts.body(at))
        if at < len(parts.exits):
            total += sum(node_macs(state.view, own[node.name]) for node in parts.head(at))
        yield float(total)


def _write(state: State, best: Choice) -> None:
    """The thresholds into the graph."""
    for one, test in zip(exits_of(state.module.graph), best.tests, strict=True):
        set_limit(one.node, test.threshold)
    finish(state.module)


def _event(
    state: State, item: t.ExitOn, fit: Fit, best: Choice, metric: str, seconds: float
) -> ExitsFitted:
    names = [f"exit {at}" for at in range(1, len(best.tests) + 1)]
    tests = [f"{test.test} {test.threshold:.6g}" for test in best.tests]
    rows = zip([*names, "output"], [*tests, ""], best.shares, fit.costs, strict=True)
    return ExitsFitted(
        item.condition.span.flat,
        item.data.text,
        tuple(ExitRow(*row) for row in rows),
        best.macs,
        {metric: best.score} if metric else {},
        tuple((c.macs, c.score) for c in fit.frontier()),
        seconds,
    )
