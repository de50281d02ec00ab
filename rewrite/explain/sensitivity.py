"""What one rule at one place does to the whole model: measured place by place, with nothing else
changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import fx, nn

from ..apply.cost import model_costs
from ..apply.engine import anchor, apply, candidates, ready_at
from ..graph.snapshot import finish, snapshot
from ..measure.compare import drift
from ..rules.binding import NoMatch
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..targets.choose import Ranged, ranged_candidates, ranged_ready

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class SiteCost:
    """One place. `reason` says why the rule does not apply there; then all else is 0.

    drift: relative L2 distance of the outputs on calibration data. drop: how far the metric fell;
    None where none was asked for. params, macs: what the model saves.
    """

    site: str
    reason: str = ""
    drift: float = 0.0
    drop: float | None = None
    params: int = 0
    macs: int = 0


Metric = Callable[[nn.Module], float]


def effects(
    state: State, rule: CompiledRule, metric: Metric | None, part: int = 0, parts: int = 1
) -> list[SiteCost]:
    """Every place of the working model at which the rule could apply, in its order; of these each
    `parts`-th from `part` on. The model is as before afterwards. The rule's own budget refuses no
    place: how much the rule moves there is the question.
    """
    rule = replace(rule, unlimited=True)
    found = _dims if rule.dim else _nodes
    reference = None if metric is None else metric(state.module)
    chosen = range(part, len(_places(state, rule)), parts)
    return [_effect(state, found(state, rule, at), metric, reference) for at in chosen]


def _places(state: State, rule: CompiledRule) -> Sequence[Ranged] | Sequence[fx.Node]:
    return ranged_candidates(state, rule) if rule.dim else candidates(state, rule)


@dataclass(frozen=True, slots=True)
class _Changed:
    """The model with the rule applied at one place, or why it does not apply."""

    site: str
    model: fx.GraphModule | None
    reason: str
    params: int = 0
    macs: int = 0


def _effect(
    state: State, changed: _Changed, metric: Metric | None, reference: float | None
) -> SiteCost:
    model = changed.model
    if model is None:
        return SiteCost(changed.site, changed.reason)
    apart = drift(state.module, model, state.samples.calibration(state.module))
    drop = None if metric is None or reference is None else reference - metric(model)
    return SiteCost(changed.site, "", apart, drop, changed.params, changed.macs)


def _dims(state: State, rule: CompiledRule, at: int) -> _Changed:
    state.surveys.clear()
    dim = ranged_candidates(state, rule)[at]
    finish(state.module)
    found = ranged_ready(state, rule, dim)
    if isinstance(found, NoMatch):
        return _Changed(dim.name, None, found.text())
    saved = found.before - found.after
    return _Changed(dim.name, found.model, "", saved.params, saved.macs)


def _nodes(state: State, rule: CompiledRule, at: int) -> _Changed:
    """Applied to a copy of the graph: a rewrite changes the one that it is made in."""
    with _apart(state):
        node = candidates(state, rule)[at]
        site = str(node.meta.get("site") or node.name)
        found = ready_at(state, rule, node, anchor(state, rule))
        if isinstance(found, NoMatch):
            return _Changed(site, None, found.text())
        before = model_costs(state.module, state.view)
        apply(state, "sensitivity", found, 0.0)
        finish(state.module)
        saved = before - model_costs(state.module, state.view)
        return _Changed(found.site.name, state.module, "", saved.params, saved.macs)


@contextmanager
def _apart(state: State) -> Iterator[None]:
    """The state works on a copy of the graph, and on the graph itself again afterwards."""
    kept, events = state.module, len(state.journal.events)
    state.reset(snapshot(kept))
    try:
        yield
    finally:
        del state.journal.events[events:]
        state.reset(kept)
        state.samples.forget()
