"""What rules with `match dim D in ...` range over: dimension classes, or image inputs."""

from __future__ import annotations

from collections.abc import Sequence

from ..channels.classes import DimClass
from ..rules.binding import NoMatch
from ..rules.rule import CompiledRule
from ..rules.state import State
from .features import DimReady, alive_dims, apply_dim, dim_candidates, dim_ready
from .images import (
    Image,
    ImageReady,
    alive_images,
    apply_image,
    image_candidates,
    image_ready,
)

Ranged = DimClass | Image
RangedReady = DimReady | ImageReady


def ranged_candidates(state: State, rule: CompiledRule) -> Sequence[Ranged]:
    """What the rule could change in the present graph, in its order."""
    if rule.images:
        return image_candidates(state, rule)
    return dim_candidates(state, rule)


def alive_ranged(state: State, rule: CompiledRule, found: Sequence[Ranged]) -> Sequence[Ranged]:
    """What has become of them since others were changed."""
    images = [one for one in found if isinstance(one, Image)]
    dims = [one for one in found if isinstance(one, DimClass)]
    return [*alive_images(state, rule, images), *alive_dims(state, dims)]


def ranged_ready(state: State, rule: CompiledRule, one: Ranged) -> RangedReady | NoMatch:
    """A rule at one of them, verified but not committed; or the reason why not."""
    if isinstance(one, Image):
        return image_ready(state, rule, one)
    return dim_ready(state, rule, one)


def apply_ranged(state: State, stage: str, ready: RangedReady, seconds: float) -> None:
    """Commits what was verified, and writes it down."""
    if isinstance(ready, ImageReady):
        apply_image(state, stage, ready, seconds)
    else:
        apply_dim(state, stage, ready, seconds)
