"""A rule with an exit on one drawn model: who leaves, and with what, as the rule's words say for
each sample alone.

The words are evaluated on what the value holds, without the engine; the network that comes out runs
all samples in one batch. Which score is enough is set so that some leave and some stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ....grammar.tree import tree as t
from ....grammar.tree.clauses import builds
from ...exits.rows import behind_exits
from ...exits.segments import early_exit
from ...graph.exits import exits_of
from ...graph.runs import record
from ...graph.snapshot import finish
from ...measure.batches import batch_size, part
from ...measure.compare import outputs
from ...rules.rule import CompiledRule
from ...rules.state import State
from ...runtime.exits import TESTS, EarlyExit, ExitTest
from ...targets.values import ValueReady, ValueSite, ValueTarget
from ..budget_check import fresh
from ..trial import FIRED, VACUOUS, WRONG, Outcome
from ..values.trial import computed, problems_of
from ..whole import Before, farthest, misdescribed, outcomes_of, tried_at, tried_each

APART = 1e-4
"""Scores that are nearer are not told apart."""

AGREES = 1e-3
"""Both run in float32, here and there, on batches of other sizes."""


def tried_exits(state: State, rule: CompiledRule, seed: int) -> list[Outcome]:
    """The rule at every value that the model has, one after another."""
    return tried_each(ValueTarget(state, rule), seed, try_exit)


exit_outcomes = outcomes_of(tried_exits)


def try_exit(target: ValueTarget, node: fx.Node, seed: int) -> Outcome:
    """What becomes of one value."""
    before = Before.of(target.state)
    found = tried_at(target, node, lambda ready: _applied(target, ready, before))
    return before.left_alone(found, target.name(node))


def _applied(target: ValueTarget, ready: ValueReady, before: Before) -> Outcome:
    state, site = target.state, ready.site
    inputs = state.samples.inputs
    target.commit("trial", ready, 0.0)
    finish(state.module)
    problems = [*problems_of(before, state.module), *misdescribed(state.module, inputs)]
    problems += _moved(before, state.module, inputs)
    if problems:
        return Outcome(WRONG, "structure", "; ".join(problems))
    number = new_exit(before.module, state.module)
    network = early_exit(state.module, behind_exits(state.module, state.samples.examples))
    said = Said.of(before.module, site, inputs)
    others = Said.of(before.module, site, fresh(inputs))
    if said.limit is None and others.limit is None:
        return Outcome(VACUOUS, "all scores are alike", site.name)
    apart = max(one.distance(network, number) for one in (said, others))
    if apart > AGREES:
        return Outcome(WRONG, "other numbers", f"at {site.name}: {apart:.2g}")
    return Outcome(FIRED)


def new_exit(before: fx.GraphModule, after: fx.GraphModule) -> int:
    """The number of the exit that came."""
    known = {node.name for node in before.graph.nodes}
    exits = enumerate(exits_of(after.graph))
    return next(at for at, one in exits if one.node.name not in known)


def _moved(before: Before, module: fx.GraphModule, inputs: tuple[Any, ...]) -> list[str]:
    """Without its exits the network gives the same bits."""
    for given in (inputs, fresh(inputs)):
        pairs = zip(outputs(before.module, given), outputs(module, given), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            return ["the outputs moved"]
    return []


# -- what the words say ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What the words of a rule say of some samples: scores [N] at its value, what each would leave
    with, what the model gives them [N, ...]. limit: between two scores, None where all are alike.
    """

    inputs: tuple[Any, ...]
    scores: Tensor
    logits: Tensor
    outputs: Tensor
    test: str
    limit: float | None

    @classmethod
    def of(cls, module: fx.GraphModule, site: ValueSite, inputs: tuple[Any, ...]) -> Said:
        """Each sample alone, through the model as it was."""
        step = next(s for r in site.rule.source.all(t.Rewrite) for s in r.steps if _is_exit(s))
        found = [_one(module, site, step, one) for one in _each(inputs)]
        scores, logits, given = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cls(inputs, scores, logits, given, step.condition.op, _between(scores))

    def distance(self, network: EarlyExit, number: int, test: str = "") -> float:
        """How far the network is from the words, if this exit alone lets samples leave: relative
        L2, infinite where others leave. test: that of the network, if it is another.
        """
        if self.limit is None:
            return 0.0
        network.tests = [ExitTest(">", torch.inf) for _ in network.tests]
        network.tests[number] = ExitTest(test or self.test, self.limit)
        with torch.no_grad():
            found, exits = network(*self.inputs, return_exit=True)
        leaves = TESTS[self.test](self.scores, self.limit)
        if not torch.equal(exits == number + 1, leaves):
            return torch.inf
        rows = leaves.reshape(-1, *[1] * (self.outputs.dim() - 1))
        return farthest([torch.where(rows, self.logits, self.outputs)], [found])


def _is_exit(step: t.Node) -> bool:
    return isinstance(step, t.Exit)


def _each(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    size = batch_size(inputs)
    return (part(inputs, size, at + 1, at) for at in range(size))


def _one(
    module: fx.GraphModule, site: ValueSite, step: t.Exit, inputs: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, logits and output of one sample."""
    node = next(n for n in module.graph.nodes if n.name == site.node.name)
    values: dict[str, Any] = {site.rule.value: record(module, [node], inputs)[node]}
    with torch.no_grad():
        for build in builds(site.rule.source):
            values[build.targets[0].text] = computed(site, build.value, values)
        score = computed(site, step.condition.left, values)  # type: ignore[attr-defined]
    (given,) = outputs(module, inputs)
    return score, values[step.name.text], given


def _between(scores: Tensor) -> float | None:
    """The middle of the widest gap between scores."""
    ordered = scores.double().sort().values
    gaps = ordered.diff()
    if not len(gaps) or not float(gaps.max()) > APART:
        return None
    at = int(gaps.argmax())
    return float(ordered[at] + ordered[at + 1]) / 2
