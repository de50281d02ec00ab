"""The model that a cut stands for: every sum over features leaves the removed ones out.

Nothing that the model computes with is sliced: where an op sums over an axis, what it reads is 0 at
the removed positions of that axis. A norm that takes statistics over features takes them over those
that are left. All other axes are left alone, so that the model takes every batch that the cut one
takes, also where heads and batch share an axis.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.snapshot import finish, snapshot
from ..ops.call import OpCall, module_at
from ..ops.layers import build_layer
from ..ops.opspec import OpSpec
from .cut_builder import free_name
from .declared import statistic_axes, summed_axes
from .flow import Flow
from .labels import joined, on_axis
from .selection import Axes, Selection, selected
from .sizes import settings, shape_at


def masked(flow: Flow, removed: Collection[int]) -> fx.GraphModule:
    """A copy of the model, sharing its parameters, in which these leaves add nothing to any sum."""
    module = snapshot(flow.view.root)
    new = dict(zip(flow.view.root.graph.nodes, module.graph.nodes, strict=True))
    kept = Selection(flow.atoms, removed)
    for node in flow.contracted:
        for value, summed in summed_axes(_call(flow, node)).items():
            axes = _among(kept.axes(flow.of(value)), summed)
            if axes:
                _mask(module, new[node], new[value], _gone(shape_at(value), axes))
    for node, names in flow.recurrent.items():
        _forget(module, flow, kept, _call(flow, node), names)
    for node in flow.statistics:
        _renew(module, flow, kept, _call(flow, node), new[node])
    finish(module)
    return module


def _call(flow: Flow, node: fx.Node) -> OpCall:
    call = flow.view.call(node)
    assert call is not None
    return call


def _among(axes: Axes, wanted: Collection[int]) -> Axes:
    return {axis: left for axis, left in axes.items() if axis in wanted}


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
    name = free_name(module, f"{value.name}_gone")
    module.register_buffer(name, gone)
    with module.graph.inserting_before(reader):
        held = module.graph.get_attr(name)
        filled = module.graph.call_function(torch.masked_fill, (value, held, 0))
    filled.meta["val"] = value.meta["val"]
    reader.replace_input_with(value, filled)


def _forget(
    module: fx.GraphModule, flow: Flow, kept: Selection, call: OpCall, names: Collection[str]
) -> None:
    """Steps of time leave out what was removed: the last axis of these weights is 0 there."""
    params = {name: call.tensor(name) for name in call.params}
    for name in names:
        weight, path = params[name], str(call.params[name])
        assert weight is not None
        last = weight.ndim - 1
        left = kept.axes(flow.weight(path)).get(last)
        if left is not None:
            params[name] = weight.detach().masked_fill(_gone(weight.shape, {last: left}), 0)
    target = str(call.node.target)
    layer = build_layer(call.op.layers, params, call.attrs, module_at(module, target), None)
    assert layer is not None
    owner, _, own = target.rpartition(".")
    module_at(module, owner).add_module(own, layer)


# -- statistics ------------------------------------------------------------------------------------


class _OnWhatIsLeft(nn.Module):
    """An op over some positions of its input; where the result has others too, they are 0.

    read, given: the positions that are left, by axis of the input and of the result.
    """

    def __init__(self, op: OpSpec, attrs: dict[str, Any], read: Axes, given: Axes) -> None:
        super().__init__()
        self.op, self.attrs, self.read, self.given = op, attrs, dict(read), dict(given)
        self.params: dict[str, str | None] = {}
        self.extents: dict[int, int] = {}

    def hold(self, name: str, value: Tensor | None) -> None:
        self.params[name] = None if value is None else f"own_{name}"
        if value is not None:
            self.register_buffer(f"own_{name}", value)

    def forward(self, x: Tensor) -> Tensor:
        params = {name: path and getattr(self, path) for name, path in self.params.items()}
        found = self.op.run({self.op.inputs[0].name: selected(x, self.read)}, params, self.attrs)
        for axis, left in self.given.items():
            shape = [*found.shape[:axis], self.extents[axis], *found.shape[axis + 1 :]]
            found = found.new_zeros(shape).index_copy(axis, left, found)
        return found


def _renew(
    module: fx.GraphModule, flow: Flow, kept: Selection, call: OpCall, node: fx.Node
) -> None:
    """The op sees what is left, and nothing else."""
    source = call.inputs[0]
    over = statistic_axes(call)
    read = _among(kept.axes(flow.of(source)), over)
    if not read:
        return
    attrs = settings(call.attrs)
    for name, vectors in flow.sized.get(call.node, {}).items():
        left = kept.axes(joined([vectors])).get(0)
        if left is not None:
            attrs[name] = (len(left),) if call.op.attrs[name].type == "ints" else len(left)
    shape = shape_at(call.node)
    given = {} if "reduction" in call.op.traits else kept.axes(flow.of(call.node))
    layer = _OnWhatIsLeft(call.op, attrs, read, _among(given, over))
    layer.extents = dict(enumerate(shape))
    for name, path in call.params.items():
        value = call.tensor(name)
        own = {} if path is None else kept.axes(flow.weight(path))
        layer.hold(name, None if value is None else selected(value.detach(), own))
    name = free_name(module, f"{node.name}_renewed")
    module.add_module(name, layer)
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, (node.all_input_nodes[0],))
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
