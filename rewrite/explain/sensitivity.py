"""What one rule at one place does to the whole model: measured place by place, with nothing else
changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx, nn

from ..apply.cost import model_costs
from ..measure.compare import drift_from
from ..measure.given import Given
from ..rules.binding import NoMatch
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..targets.choose import kind_of, target_of


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
    reference = None if metric is None else metric(state.module)
    chosen = range(part, len(target_of(state, rule).candidates()), parts)
    given = state.given()
    given.hold()
    return [_effect(given, _changed(state, rule, at), metric, reference) for at in chosen]


@dataclass(frozen=True, slots=True)
class _Changed:
    """The model with the rule applied at one place, or why it does not apply."""

    site: str
    model: fx.GraphModule | None
    reason: str
    params: int = 0
    macs: int = 0


def _effect(
    given: Given, changed: _Changed, metric: Metric | None, reference: float | None
) -> SiteCost:
    model = changed.model
    if model is None:
        return SiteCost(changed.site, changed.reason)
    apart = drift_from(given, model)
    drop = None if metric is None or reference is None else reference - metric(model)
    return SiteCost(changed.site, "", apart, drop, changed.params, changed.macs)


def _changed(state: State, rule: CompiledRule, at: int) -> _Changed:
    with kind_of(rule).apart(state):
        target = target_of(state, rule)
        place = target.candidates()[at]
        before = model_costs(state.module, state.view)
        found = target.prepare(place)
        if isinstance(found, NoMatch):
            return _Changed(target.name(place), None, found.text())
        name = found.site.name
        model, after = target.with_one(found)
        saved = before - after
        return _Changed(name, model, "", saved.params, saved.macs)
