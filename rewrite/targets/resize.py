"""A model planned anew for a smaller image: one resize behind the input, and what every op gives
then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import interpolate

from ..graph.building import readers
from ..graph.emit import Emitted
from ..graph.runs import Watcher
from ..graph.snapshot import finish, snapshot
from ..measure.compare import REFUSALS
from ..ops.spec import TensorSpec, spec_of
from ..rules.binding import PLAN, SITES, NoMatch
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State
from ..torch_internals import tree_map, version_of
from .check import miss


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


def images_of(state: State) -> list[Image]:
    inputs = [node for node in state.module.graph.nodes if node.op == "placeholder"]
    return [Image(node, place) for place, node in enumerate(inputs) if _is_image(node)]


def _is_image(node: fx.Node) -> bool:
    spec = node.meta.get("val")
    fits = isinstance(spec, TensorSpec) and len(spec.shape) == 4 and spec.dtype.is_floating_point
    return fits and bool(node.users)


def written_size(state: State, image: Image) -> tuple[int, int] | None:
    """The size that the only reader of an image gives it; None where it is no resize to a size."""
    calls = [state.view.call(user) for user in readers(image.node)]
    resizes = [
        call
        for call in calls
        if call is not None and call.op is state.vocabulary.computed_by(interpolate)
    ]
    if len(calls) != 1 or not resizes or resizes[0].attrs["size"] is None:
        return None
    height, width = resizes[0].node.meta["val"].shape[2:]
    return height, width


def sized(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# -- planning --------------------------------------------------------------------------------------


def decided_otherwise(state: State, site: ImageSite) -> NoMatch | None:
    """The graph holds what Python decided on the example: a branch on a size, say."""
    sizes = {image.place: written_size(state, image) for image in images_of(state)}
    args = list(state.samples.inputs)
    for place, size in {**sizes, site.dim.place: site.size}.items():
        args[place] = args[place] if size is None else smaller(args[place], size)
    why = state.otherwise(tuple(args))
    if not why:
        return None
    text = f"at {sized(site.size)} the model would be another graph: {why}"
    return miss(site.rule, PLAN, text, "R013", site.dim.node)


def planned(state: State, site: ImageSite) -> fx.GraphModule | NoMatch:
    """A copy of the model with the resize in it, and what every node gives now."""
    module = snapshot(state.module)
    resize = _insert(state, site, module)
    finish(module)
    resized: list[tuple[Tensor, int]] = []

    def describe(node: fx.Node, value: Any) -> None:
        node.meta["val"] = spec_of(value)
        if node is resize:
            resized.append((value, version_of(value)))

    run = Watcher(module, describe)
    inputs = map(_as_recorded, module.graph.nodes, state.samples.inputs)
    try:
        with torch.no_grad():
            run.run(*inputs)
    except REFUSALS as error:
        return _refused(site, run.at or resize, f"cannot take it: {str(error).splitlines()[0]}")
    if any(version_of(image) != version for image, version in resized):  # also through a view
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
    op = state.vocabulary.computed_by(interpolate)
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
    size, target = sized(site.size), str(node.target) if node.op == "call_module" else ""
    return miss(site.rule, PLAN, f"at {size} `{target or node.name}` {why}", "R013", node)
