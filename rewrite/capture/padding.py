"""Convolutions whose `padding="same"` is not the same at both ends, as torch computes them.

Torch pads `dilation * (kernel - 1)` zeros in all, the odd one at the end: it makes a padded copy
and convolves that. Written so, the convolution has one number for each axis, and rules can read it.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from ..graph.modules import has_hooks
from ..ops.layers import build_layer
from ..ops.spec import TensorSpec

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
_POSITIONS = {"padding": 4, "dilation": 5}


def split_padding(module: fx.GraphModule) -> None:
    """Put a node that pads the odd zeros before each convolution of `module` that needs it."""
    opened: dict[str, list[int] | None] = {}
    for node in list(module.graph.nodes):
        more = None
        if node.op == "call_module":
            path = str(node.target)
            if path not in opened:
                opened[path] = _open_layer(module, path)
            more = opened[path]
        elif node.target in _FUNCTIONS:
            more = _open_call(node)
        if more is not None:
            _pad(node, more)
    module.recompile()


def _open_layer(module: fx.GraphModule, path: str) -> list[int] | None:
    """Give the layer numbers for its padding; what is to be added before it, None for nothing."""
    layer: Any = module.get_submodule(path)
    if (
        not isinstance(layer, _LAYERS)
        or layer.padding != "same"
        or layer.padding_mode != "zeros"
        or has_hooks(layer)
    ):
        return None
    each, more = _split(layer.kernel_size, layer.dilation)
    if not any(more):
        return None
    names = ("stride", "dilation", "groups")
    settings = {name: getattr(layer, name) for name in names} | {"padding": each}
    new = build_layer(_LAYERS, {"weight": layer.weight, "bias": layer.bias}, settings, layer, None)
    assert new is not None
    module.set_submodule(path, new)
    return more


def _open_call(node: fx.Node) -> list[int] | None:
    weight: Any = node.args[1]
    known = weight.meta.get("val") if isinstance(weight, fx.Node) else None
    if _argument(node, "padding") != "same" or not isinstance(known, TensorSpec):
        return None
    kernel, dilation = known.shape[2:], _argument(node, "dilation") or 1
    wide = tuple(dilation) if isinstance(dilation, (tuple, list)) else (dilation,)
    each, more = _split(kernel, wide if len(wide) > 1 else wide * len(kernel))
    if not any(more):
        return None
    if "padding" in node.kwargs:
        node.update_kwarg("padding", each)
    else:
        node.update_arg(_POSITIONS["padding"], each)
    return more


def _argument(node: fx.Node, name: str) -> Any:
    """By position or by name; None if it is not given."""
    at = _POSITIONS[name]
    return node.args[at] if len(node.args) > at else node.kwargs.get(name)


def _split(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
    """What both ends of each axis get, and what the end gets besides."""
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple(n // 2 for n in total), [n % 2 for n in total]


def _pad(node: fx.Node, more: list[int]) -> None:
    """Zeros at the end of the last axes of what the convolution reads."""
    source: Any = node.args[0]
    # `pad` names the last axis first, and two ends of each.
    ends = [size for extra in reversed(more) for size in (0, extra)]
    with node.graph.inserting_before(node):
        padded = node.graph.call_function(nn.functional.pad, (source, ends))
    padded.meta.update(
        val=_grown(source.meta["val"], more),
        site=node.meta.get("site", ""),
        source=node.meta.get("source", ""),
        mutates=(),
        aliases=(),
    )
    node.args = (padded, *node.args[1:])


def _grown(spec: TensorSpec, more: list[int]) -> TensorSpec:
    lead = spec.shape[: -len(more)]
    grown = (size + extra for size, extra in zip(spec.shape[-len(more) :], more, strict=True))
    return TensorSpec((*lead, *grown), spec.dtype)
