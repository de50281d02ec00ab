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

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.building import readers
from ..graph.emit import Emitted
from ..graph.index import GraphView
from ..graph.places import lies_at
from ..graph.snapshot import finish, snapshot
from ..journal import Applied, Costs
from ..measure.compare import REFUSALS
from ..ops.spec import TensorSpec, spec_of
from ..rules.binding import PLAN, SITES, NoMatch, left_for
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State
from ..torch_internals import tree_map, version_of
from .check import CutTrial, Verified, change_conditions, change_rank, judged, miss
from .features import guard_miss, reshaped
from .target import Condition, Rank, Target, line

EXACT_RESIZE = "the model equals the one before on images that are resized outside of it"


def settings(dtype: torch.dtype) -> dict[str, Any]:
    """How images are resized: torch has no antialiasing for half precision on a CPU."""
    smooth = dtype in (torch.float32, torch.float64)
    return {"mode": "bilinear", "align_corners": False, "antialias": smooth}


def smaller(images: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(images, size, **settings(images.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image input: its node, and its place among the inputs of the model."""

    node: fx.Node
    place: int

    @property
    def name(self) -> str:
        return str(self.node.target)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.node.meta["val"].shape[2:]
        return height, width

    def scaled(self, height: int) -> tuple[int, int]:
        """The size with this height; the width is rounded, half a pixel up, and at least 1."""
        old, width = self.size
        return height, max(1, (2 * width * height + old) // (2 * old))


@dataclass(slots=True, eq=False)
class ImageSite:
    """An image input at which the guards hold, and the size that the rule gives it."""

    rule: CompiledRule
    dim: Image
    scope: Scope
    size: tuple[int, int]

    @property
    def name(self) -> str:
        return self.dim.name


@dataclass(slots=True)
class ImageReady(Verified):
    """A smaller input that was verified and waits to be committed."""

    site: ImageSite
    view: GraphView

    @property
    def model(self) -> fx.GraphModule:
        return self.view.root


def _images(state: State) -> list[Image]:
    inputs = [node for node in state.module.graph.nodes if node.op == "placeholder"]
    return [Image(node, place) for place, node in enumerate(inputs) if _is_image(node)]


def _is_image(node: fx.Node) -> bool:
    spec = node.meta.get("val")
    fits = isinstance(spec, TensorSpec) and len(spec.shape) == 4 and spec.dtype.is_floating_point
    return fits and bool(node.users)


# -- one image -------------------------------------------------------------------------------------


def _examined(state: State, rule: CompiledRule, image: Image) -> ImageReady | NoMatch:
    scope = state.scope({**rule.args, rule.dim: image.size[0]})
    found = guard_miss(rule, scope) or _resized_already(state, rule, image)
    if found is not None:
        return found
    height = _height(scope, rule, image)
    if height == image.size[0]:
        return miss(rule, PLAN, "the rule keeps everything", "R012", image.node)
    if not height:
        return miss(rule, PLAN, "the rule keeps nothing", "R011", image.node)
    return _prepared(state, ImageSite(rule, image, scope, image.scaled(height)))


def _resized_already(state: State, rule: CompiledRule, image: Image) -> NoMatch | None:
    """A second resize in front of one that gives a written size would only blur."""
    size = _written(state, image)
    text = f"it is resized to {_sized(size)} already" if size else ""
    return miss(rule, SITES, text, "R012", image.node) if size else None


def _written(state: State, image: Image) -> tuple[int, int] | None:
    """The size that the only reader of an image gives it; None where it is no resize to a size."""
    calls = [state.view.call(user) for user in readers(image.node)]
    resizes = [call for call in calls if call is not None and call.op.name == "interpolate"]
    if len(calls) != 1 or not resizes or resizes[0].attrs["size"] is None:
        return None
    height, width = resizes[0].node.meta["val"].shape[2:]
    return height, width


def _sized(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _height(scope: Scope, rule: CompiledRule, image: Image) -> int:
    expr = rule.resize.value
    found = scope.number(expr)
    if not isinstance(found, int) or not 0 <= found <= image.size[0]:
        place = Label(expr.span, f"a whole number of rows, at most {image.size[0]}, is meant")
        raise fail("R001", f"`{found}` is no smaller height", place)
    return found


# -- planning --------------------------------------------------------------------------------------


def _prepared(state: State, site: ImageSite) -> ImageReady | NoMatch:
    planned = _decided_otherwise(state, site) or _planned(state, site)
    if isinstance(planned, NoMatch):
        return planned
    trial = _ResizeTrial(state, site, GraphView(planned, state.vocabulary))
    verdicts = judged(trial)
    if isinstance(verdicts, NoMatch):
        return verdicts
    return ImageReady(*trial.costs, verdicts, trial.drift, site, trial.view)


def _decided_otherwise(state: State, site: ImageSite) -> NoMatch | None:
    """The graph holds what Python decided on the example: a branch on a size, say."""
    sizes = {image.place: _written(state, image) for image in _images(state)}
    args = list(state.samples.inputs)
    for place, size in {**sizes, site.dim.place: site.size}.items():
        args[place] = args[place] if size is None else smaller(args[place], size)
    why = state.otherwise(tuple(args))
    if not why:
        return None
    text = f"at {_sized(site.size)} the model would be another graph: {why}"
    return miss(site.rule, PLAN, text, "R013", site.dim.node)


def _planned(state: State, site: ImageSite) -> fx.GraphModule | NoMatch:
    """A copy of the model with the resize in it, and what every node gives now."""
    module = snapshot(state.module)
    resize = _insert(state, site, module)
    finish(module)
    run = _Planner(module, resize)
    inputs = map(_as_recorded, module.graph.nodes, state.samples.inputs)
    try:
        with torch.no_grad():
            run.run(*inputs)
    except REFUSALS as error:
        return _refused(site, run.at, f"cannot take it: {str(error).splitlines()[0]}")
    if run.writes:
        return miss(site.rule, SITES, "the model writes into it", "R012", site.dim.node)
    for old, new in zip(_results(state.module), _results(module), strict=True):
        was, now = old.meta["val"], new.meta["val"]
        if was != now:
            return _refused(site, new, f"would give {now}, not {was}, and the model returns it")
    return module


def _as_recorded(node: fx.Node, value: Any) -> Any:
    """A copy of an input, which the model may write to. What a graph that was exported knows of its
    nodes was seen with twice the batch of the example.
    """
    spec = node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(spec, TensorSpec) or not value.numel():
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, value)
    times = spec.shape[0] // value.shape[0] if spec.shape else 1
    return torch.cat([value] * times) if times > 1 else value.clone()


def _insert(state: State, site: ImageSite, module: fx.GraphModule) -> fx.Node:
    """Puts the resize in front of everything that reads the image."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    image, first = inputs[site.dim.place], inputs[-1].next
    op = state.vocabulary["interpolate"]
    attrs = {**op.defaults, **settings(image.meta["val"].dtype), "size": site.size}
    resize = Emitted(op, (image,), {}, attrs, None).insert(module, first, "")
    image.replace_all_uses_with(resize, delete_user_cb=lambda user: user is not resize)
    origins = image.meta.get("origins") or (image.name,)
    resize.meta.update(site="", source="", mutates=(), aliases=(), origins=origins)
    return resize


def _results(module: fx.GraphModule) -> list[fx.Node]:
    return module.graph.output_node().all_input_nodes


def _refused(site: ImageSite, node: fx.Node, why: str) -> NoMatch:
    """Points at the op; an input is none, but the model may hand it on."""
    size, target = _sized(site.size), str(node.target) if node.op == "call_module" else ""
    return miss(site.rule, PLAN, f"at {size} `{target or node.name}` {why}", "R013", node)


class _Planner(fx.Interpreter):
    """Runs the graph once and writes down what each node gives; `at` is the node where it is."""

    def __init__(self, module: fx.GraphModule, resize: fx.Node) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.at, self.resize = resize, resize
        self.resized: tuple[Tensor, int] | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        value = super().run_node(n)
        n.meta["val"] = spec_of(value)
        if n is self.resize:
            self.resized = value, version_of(value)
        return value

    @property
    def writes(self) -> bool:
        """Whether something wrote to the resized image, also through a view of it."""
        assert self.resized is not None
        image, version = self.resized
        return version_of(image) != version


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
    claim = EXACT_RESIZE
    remedy = "this is a mistake of lissom: please report it with the model"

    def perturbed(self) -> nn.Module:
        return _OnSmaller(self.unchanged(), self.site.dim.place, self.site.size)

    def left(self) -> int:
        return self.site.size[0]


# -- the target ------------------------------------------------------------------------------------


class ImageTarget(Target[Image, ImageReady]):
    """Candidates are the image inputs of the present graph that something reads, in their order."""

    def candidates(self) -> list[Image]:
        at = self.rule.at
        return [i for i in _images(self.state) if at is None or lies_at(i.name, at)]

    def alive(self, places: Sequence[Image]) -> list[Image]:
        """Inputs keep their names."""
        now = {image.name: image for image in self.candidates()}
        return [now[image.name] for image in places if image.name in now]

    def prepare(self, place: Image) -> ImageReady | NoMatch:
        """Raises V101 if the planned model does something else than the one before."""
        try:
            return _examined(self.state, self.rule, place)
        except LissomError as error:
            left = left_for(error, self.rule.source.name.span, place.node)
            if left is None:
                raise
            return left

    def commit(self, stage: str, ready: ImageReady, seconds: float) -> None:
        """The planned model becomes the working one."""
        started = time.perf_counter()
        site, state, old = ready.site, self.state, self.state.module
        state.reset(ready.model)
        state.samples.forget()
        (resize,) = _added(old, state.module)
        changed = reshaped(old, state.module)
        seconds += time.perf_counter() - started
        bindings = {site.rule.dim: f"{_sized(site.dim.size)} -> {_sized(site.size)}"}
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
