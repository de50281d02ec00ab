"""The model that a cut stands for: every sum over features leaves the removed ones out.

Nothing is sliced here, so this shares no code with `cut`: where an op contracts an axis, what it
reads is 0 at the removed positions.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from ..checkpoint import finish, snapshot
from ..layers import build_layer
from .flow import Flow
from .kept import Axes, Kept
from .sizes import shape_at
from .tracks import on_axis
from .work import free_name


def masked(flow: Flow, removed: Collection[int]) -> fx.GraphModule:
    """A copy of the model, sharing its parameters, in which these leaves add nothing to any sum."""
    root = flow.view.root
    module = snapshot(root)
    new = dict(zip(root.graph.nodes, module.graph.nodes, strict=True))
    kept = Kept(flow.atoms, removed)
    for node in flow.contracted:
        call = flow.view.call(node)
        assert call is not None
        for value in dict.fromkeys(v for v in call.inputs if isinstance(v, fx.Node)):
            axes = kept.axes(flow.of(value), len(shape_at(value)))
            if axes:
                _mask(module, new[node], new[value], _gone(shape_at(value), axes))
    for node, names in flow.recurrent.items():
        _forget(module, flow, kept, node, names)
    finish(module)
    return module


def _forget(
    module: fx.GraphModule, flow: Flow, kept: Kept, node: fx.Node, names: Collection[str]
) -> None:
    """Steps of time leave out what was removed: the last axis of these weights is 0 there."""
    call = flow.view.call(node)
    assert call is not None
    params = {name: call.tensor(name) for name in call.params}
    for name in names:
        weight, path = params[name], str(call.params[name])
        assert weight is not None
        left = kept.axis(flow.weight(path), weight.ndim - 1)
        if left is not None:
            params[name] = weight.detach().masked_fill(
                _gone(weight.shape, {weight.ndim - 1: left}), 0
            )
    target = str(node.target)
    layer = build_layer(call.op.name, params, call.attrs, module.get_submodule(target), None)
    assert layer is not None
    owner, _, own = target.rpartition(".")
    module.get_submodule(owner).add_module(own, layer)


def _gone(shape: tuple[int, ...], axes: Axes) -> Tensor:
    """Whether a position was removed: bool, with extent 1 along the axes that lose nothing."""
    gone = torch.zeros([1] * len(shape), dtype=torch.bool)
    for axis, left in axes.items():
        lost = torch.ones(shape[axis], dtype=torch.bool)
        lost[left] = False
        gone = gone | on_axis(lost, axis, len(shape))
    return gone


def _mask(module: fx.GraphModule, reader: fx.Node, value: fx.Node, gone: Tensor) -> None:
    """What one op reads of a value is 0 where `gone` says so."""
    name = free_name(module, "gone")
    module.register_buffer(name, gone)
    with module.graph.inserting_before(reader):
        held = module.graph.get_attr(name)
        filled = module.graph.call_method("masked_fill", (value, held, 0))
    filled.meta["val"] = value.meta["val"]
    reader.replace_input_with(value, filled)
