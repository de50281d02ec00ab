"""Whether an approximate rule kept its word, measured apart from the engine, and how far its model
drifts on data that the rule has not seen.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...grammar.tree.clauses import names_in
from ..apply.engine import VerifiedRewrite
from ..graph.runs import record
from ..journal import Verdict, VerdictKind
from ..measure.compare import drift
from ..torch_internals import tree_map

LEVEL = 0.95
"""Confidence of the rates below."""

SLACK = 1e-3
"""Relative room between two ways to measure one error: the engine runs the site alone."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One application: its error over its budget on the data that the rule was given and on fresh
    data, and how far the outputs of the model move on fresh data (relative L2).
    """

    given: float
    fresh: float
    drift: float

    @property
    def holds(self) -> bool:
        return self.given <= 1 + SLACK


def kept(
    original: fx.GraphModule,
    perturbed: fx.GraphModule,
    ready: VerifiedRewrite,
    inputs: tuple[Any, ...],
) -> Kept | None:
    """Compares the model before with the one that has only its weights moved; None where the rule
    states no `error(...) <= budget`, or the budget is 0.
    """
    claim = next((v for v in ready.verdicts if v.kind is VerdictKind.ERROR), None)
    if claim is None or not claim.tolerance:
        return None
    names, allowed = _names(ready, claim), claim.tolerance
    unseen = fresh(inputs)

    def over(args: tuple[Any, ...]) -> float:
        return _error(original, perturbed, names, args) / allowed

    return Kept(over(inputs), over(unseen), drift(original, perturbed, [unseen]))


def _names(ready: VerifiedRewrite, verdict: Verdict) -> list[str]:
    """The nodes whose error the claim is about; copies of a graph keep the names."""
    assert verdict.clause is not None
    named = {name.text for name in names_in(ready.site.rule.claims[verdict.clause])}
    outputs = ready.site.outputs
    return [
        node.name for name, node in outputs.items() if not named & outputs.keys() or name in named
    ]


def _error(
    original: fx.GraphModule, perturbed: fx.GraphModule, names: Sequence[str], args: tuple[Any, ...]
) -> float:
    """The largest relative L2 error of the named values."""
    before, after = (_values(module, names, args) for module in (original, perturbed))
    return max(_distance(before[name], after[name]) for name in names)


def _distance(reference: Tensor, value: Tensor) -> float:
    if torch.equal(reference, value):
        return 0.0
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def _values(
    module: fx.GraphModule, names: Iterable[str], args: tuple[Any, ...]
) -> Mapping[str, Tensor]:
    """What a model computes at some of its nodes."""
    nodes = [node for node in module.graph.nodes if node.name in names]
    return {node.name: value for node, value in record(module, nodes, args).items()}


def fresh(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Other inputs of the same shapes and dtypes; whole numbers stay, since they may be indices."""
    generator = torch.Generator().manual_seed(20_211)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value.dtype)

    return tree_map(other, inputs)


# -- many applications -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confidence:
    """What applications show together. `held` of them kept the budget, none broke it; with
    confidence `level`, fewer than `rate_below` of such applications break it. worst: the largest
    error over its budget. fresh: the share within budget on fresh data. drift: median and largest
    relative L2 change of a model's outputs on fresh data.
    """

    held: int
    rate_below: float
    level: float
    worst: float
    fresh: float
    drift: float
    drift_worst: float


def confidence(found: Sequence[Kept]) -> Confidence | None:
    """The bound is exact for a binomial with no failure in n trials: 1 - (1 - level) ^ (1 / n)."""
    if not found:
        return None
    return Confidence(
        len(found),
        1 - (1 - LEVEL) ** (1 / len(found)),
        LEVEL,
        max(one.given for one in found),
        sum(one.fresh <= 1 for one in found) / len(found),
        statistics.median(one.drift for one in found),
        max(one.drift for one in found),
    )
