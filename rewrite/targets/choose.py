"""Which target a rule has: the one place of the engine that asks what kind of rule it is."""

from __future__ import annotations

from typing import Any

from ..rules.rule import CompiledRule
from ..rules.state import State
from .features import FeatureTarget
from .images import ImageTarget
from .ops import OpTarget
from .params import ParamTarget
from .target import Target
from .values import ValueTarget
from .watching import WatchTarget


def kind_of(rule: CompiledRule) -> type[Target[Any, Any]]:
    """What the rule ranges over."""
    if rule.kind == "observe":
        return WatchTarget
    if rule.images:
        return ImageTarget
    if rule.param:
        return ParamTarget
    if rule.value:
        return ValueTarget
    return FeatureTarget if rule.dim else OpTarget


def target_of(state: State, rule: CompiledRule) -> Target[Any, Any]:
    """The same, for one step on the working model."""
    return kind_of(rule)(state, rule)
