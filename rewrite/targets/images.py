"""Rules over the resolution: `match dim R in resolution` ... `R := N`, one image input at a time.

R is the height of an image input, a float input of the model with axes [N, C, H, W]; the width goes
with it by the same factor (rho of Howard et al. 2017, arXiv:1704.04861, section 3.4). The rewrite
puts one resize behind the input and plans every op behind it anew, so that callers and data stay as
they are. The reference is the model before it, run on images that were resized outside of it.
Nothing of the working model changes before the commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ...grammar.diagnostics import Label, fail
from ..graph.index import GraphView
from ..graph.places import lies_at
from ..graph.snapshot import finish
from ..journal import Applied, Costs
from ..rules.binding import PLAN, SITES, NoMatch
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State
from .check import Change, CutTrial, WholeTarget, miss
from .dims import guard_miss
from .features import reshaped
from .resize import (
    Image,
    ImageSite,
    decided_otherwise,
    images_of,
    planned,
    sized,
    smaller,
    written_size,
)
from .target import Condition, Rank, change_conditions, change_rank, line

EXACT_RESIZE = "the model equals the one before on images that are resized outside of it"


# -- one image -------------------------------------------------------------------------------------


def _examined(state: State, rule: CompiledRule, image: Image) -> ImageSite | NoMatch:
    scope = state.scope({**rule.args, rule.dim: image.size[0]})
    found = guard_miss(rule, scope) or _resized_already(state, rule, image)
    if found is not None:
        return found
    height = _height(scope, rule, image)
    if height == image.size[0]:
        return miss(rule, PLAN, "the rule keeps everything", "R012", image.node)
    if not height:
        return miss(rule, PLAN, "the rule keeps nothing", "R011", image.node)
    return ImageSite(rule, image, scope, image.scaled(height))


def _resized_already(state: State, rule: CompiledRule, image: Image) -> NoMatch | None:
    """A second resize in front of one that gives a written size would only blur."""
    size = written_size(state, image)
    text = f"it is resized to {sized(size)} already" if size else ""
    return miss(rule, SITES, text, "R012", image.node) if size else None


def _height(scope: Scope, rule: CompiledRule, image: Image) -> int:
    expr = rule.resize.value
    found = scope.number(expr)
    if not isinstance(found, int) or not 0 <= found <= image.size[0]:
        place = Label(expr.span, f"a whole number of rows, at most {image.size[0]}, is meant")
        raise fail("R001", f"`{found}` is no smaller height", place)
    return found


# -- verifying -------------------------------------------------------------------------------------


class _OnSmaller(nn.Module):
    """A model that gets one of its inputs resized."""

    def __init__(self, model: nn.Module, place: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.place, self.size = model, place, size

    def forward(self, *args: Any) -> Any:
        given = list(args)
        given[self.place] = smaller(given[self.place], self.size)
        return self.model(*given)


@dataclass
class _ResizeTrial(CutTrial[ImageSite]):
    view: GraphView

    claim = EXACT_RESIZE
    remedy = "this is a mistake of lissom: please report it with the model"

    def perturbed(self) -> nn.Module:
        return _OnSmaller(self.unchanged(), self.site.dim.place, self.site.size)

    def left(self) -> dict[str, Any]:
        return {self.site.rule.dim: self.site.size[0]}


class ImageReady(Change[_ResizeTrial]):
    """A smaller input that waits to be verified and committed."""

    @property
    def site(self) -> ImageSite:
        return self.tried.site

    @property
    def node(self) -> fx.Node:
        return self.site.dim.node


# -- the target ------------------------------------------------------------------------------------


class ImageTarget(WholeTarget[Image, ImageReady]):
    """Candidates are the image inputs of the present graph that something reads, in their order."""

    def candidates(self) -> list[Image]:
        at = self.rule.at
        return [i for i in images_of(self.state) if at is None or lies_at(i.name, at)]

    def alive(self, places: Sequence[Image]) -> list[Image]:
        """Inputs keep their names."""
        now = {image.name: image for image in self.candidates()}
        return [now[image.name] for image in places if image.name in now]

    def weigh(self, place: Image) -> ImageReady | NoMatch:
        return self._or_reason(lambda: self._planned(place), place.node)

    def _planned(self, place: Image) -> ImageReady | NoMatch:
        state, site = self.state, _examined(self.state, self.rule, place)
        if isinstance(site, NoMatch):
            return site
        found = decided_otherwise(state, site) or planned(state, site)
        if isinstance(found, NoMatch):
            return found
        return ImageReady.of(_ResizeTrial(state, site, GraphView(found, state.vocabulary)))

    def commit(self, stage: str, ready: ImageReady, seconds: float) -> None:
        """The planned model becomes the working one."""
        started = time.perf_counter()
        site, state, old = ready.site, self.state, self.state.module
        state.reset(ready.model)
        state.samples.forget()
        (resize,) = _added(old, state.module)
        changed = reshaped(old, state.module)
        seconds += time.perf_counter() - started
        bindings = {site.rule.dim: f"{sized(site.dim.size)} -> {sized(site.size)}"}
        state.journal.add(
            Applied(
                stage,
                site.rule.label,
                site.name,
                site.rule.place,
                (),
                (resize,),
                changed,
                ready.before,
                ready.after,
                ready.verdicts,
                bindings,
                seconds,
            )
        )

    def with_one(self, ready: ImageReady) -> tuple[fx.GraphModule, Costs]:
        finish(self.state.module)
        return ready.model, ready.after

    # -- telling -----------------------------------------------------------------------------------

    kind = "any image input"

    def name(self, place: Image) -> str:
        return place.name

    def at(self, places: Sequence[Image], path: str) -> list[Image]:
        named = [image for image in places if lies_at(image.name, path)]
        if places and not named:
            known = ", ".join(image.name for image in places)
            where = Label(None, where=path)
            raise fail("U008", f"the model has no image `{path}`", where, help=f"there are {known}")
        return named

    def conditions(self) -> Iterator[Condition]:
        return change_conditions(
            self.rule,
            ("image", "the model neither resizes it nor writes into it"),
            ("fits", f"every op takes it, and outputs keep shapes: {line(self.rule.resize)}"),
        )

    def rank(self, miss: NoMatch) -> Rank:
        return change_rank(miss)


def _added(old: fx.GraphModule, new: fx.GraphModule) -> Iterator[str]:
    known = {node.name for node in old.graph.nodes}
    return (node.name for node in new.graph.nodes if node.name not in known)
