"""Cutting features out of a model: one pass that slices parameters and makes every size anew.

The result computes what the model computes where every sum over features leaves the removed ones
out (see `masked`). Sizes that are written into movements are made anew; a number that is computed
from a size and used as a number (a scale, say) stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from torch import Tensor, fx, nn

from ...grammar.diagnostics import Label, LissomError, fail
from ..graph.exchange import shallow
from ..graph.formats import in_format_of
from ..graph.snapshot import finish, snapshot
from ..ops.call import OpCall, module_at, tensor_at
from ..ops.layers import build_layer
from ..ops.spec import TensorSpec
from .cut_builder import Work
from .fit_sizes import Fit, rearranged
from .flow import Flow, Key
from .labels import joined
from .numbers import old_numbers, renumbered
from .reach import Reach
from .selection import Selection, selected, since
from .sizes import settings, shape_at, specs_of


def cut(flow: Flow, removed: Iterable[int]) -> fx.GraphModule:
    """A new model without these leaves. It shares the parameters that stay whole with the old one,
    which stays as it is.

    Raises R010 where a movement cannot be made to fit what is left, R011 where nothing would be
    left of an axis.
    """
    work = begun(flow)
    shrink(work, removed)
    finish(work.module)
    return work.module


def begun(flow: Flow) -> Work:
    """A copy of the model of which nothing was cut yet. Its code has to be made (`finish`) before
    it is run.
    """
    root = flow.view.root
    module = snapshot(root)
    new = dict(zip(root.graph.nodes, module.graph.nodes, strict=True))
    return Work(flow, Selection(flow.atoms, ()), module, new, Reach(flow))


def shrink(work: Work, removed: Iterable[int]) -> Steps:
    """Cuts leaves out of the new model, which has lost others already: what they reach is made
    anew. Raises as `cut` does, and then nothing has changed.
    """
    kept, numbers, gone = work.kept, dict(work.numbers), set(work.gone)
    work.kept = kept.more(set(removed))
    try:
        steps = _planned(work, kept)
    except LissomError:
        work.kept, work.numbers, work.gone = kept, numbers, gone
        raise
    work.layers, work.rewritten, work.fresh, work.dropped = set(), set(), [], []
    for key, tensor in steps.tensors.items():
        work.tensors[key] = tensor
        work.parameters.pop(key, None)
    for node in steps.nodes:
        _node(work, node, steps.fits)
    for node in reversed(steps.skipped):
        work.drop(work.new[node])
        work.needs(node, [])
    return steps


@dataclass
class Steps:
    """What one cut makes anew. lost: the atoms that go. nodes: those of the old graph
    that they reach, in its order. skipped: those that are needed no longer.
    """

    lost: Tensor
    tensors: dict[Key, Tensor]
    skipped: list[fx.Node]
    nodes: list[fx.Node] = field(default_factory=list)
    fits: dict[fx.Node, Fit] = field(default_factory=dict)


def _planned(work: Work, before: Selection) -> Steps:
    """All that can fail, so that nothing is left half done. before: what was kept until now."""
    reach, lost = work.reach, work.kept.lost
    sliced = {key: _sliced(work, reach.paths[key][0], before) for key in reach.keys_of(lost)}
    tensors = {key: tensor for key, tensor in sliced.items() if tensor is not None}
    waiting = reach.nodes_of(lost)
    steps = Steps(lost, tensors, _skipped(work, waiting))
    work.gone.update(steps.skipped)
    seen = set(waiting)
    while waiting:
        node = reach.nodes[heappop(waiting)]
        if node.op == "output" or node in work.gone or node in reach.checks:
            continue
        steps.nodes.append(node)
        for other in _planned_at(work, node, steps):
            place = reach.place[other]
            if place not in seen:
                seen.add(place)
                heappush(waiting, place)
    return steps


def _planned_at(work: Work, node: fx.Node, steps: Steps) -> Iterable[fx.Node]:
    """Plans one node. The readers of a number that changes are concerned, too."""
    call = work.flow.view.call(node)
    if _gives_number(node, call):
        return node.users if renumbered(work, node) else ()
    if call is not None and _moves(work, call):
        steps.fits[node] = rearranged(work, call)
    return ()


def _skipped(work: Work, reached: Iterable[int]) -> list[fx.Node]:
    """What stands inside of shuffles that one selection is going to replace."""
    found = (work.flow.regions.get(work.reach.nodes[place]) for place in reached)
    regions = [r for r in found if r is not None and r.axis in work.axes(r.source)]
    return [node for r in regions for node in r.inside if node not in work.gone]


def _gives_number(node: fx.Node, call: OpCall | None) -> bool:
    return node.op != "get_attr" and call is None and not any(specs_of(node))


def _node(work: Work, node: fx.Node, fits: Mapping[fx.Node, Fit]) -> None:
    call = work.flow.view.call(node)
    if node.op == "get_attr":
        _held(work, str(node.target))
    elif node in fits:
        fits[node]()
    elif not _gives_number(node, call):
        _computed(work, node, call)
    work.describe(node)
    if call is not None and node in work.flow.recurrent:
        _state(work, call)


def _moves(work: Work, call: OpCall) -> bool:
    plain = "movement" in call.op.traits and not call.op.inputs[0].variadic
    return plain or call.node in work.flow.regions


def _computed(work: Work, node: fx.Node, call: OpCall | None) -> None:
    if call is not None and _is_changed(work, call):
        _layer(work, call)
    elif call is not None and "scaled" in call.op.traits:
        _scaled(work, call)
    if any(source in work.numbers for source in node.all_input_nodes):
        old_numbers(work, node)


def _is_changed(work: Work, call: OpCall) -> bool:
    """Whether its parameters were sliced, or a setting is another size now."""
    paths = [path for path in call.params.values() if path]
    return any(work.sliced(path) is not None for path in paths) or bool(_sized(work, call))


def _scaled(work: Work, call: OpCall) -> None:
    """Products that are divided by the root of a size, where no `scale` is given: the number that
    it stood for stays what it was.
    """
    old, new = shape_at(call.inputs[0])[-1], work.shape(call.inputs[0])[-1]
    if old != new and call.attrs["scale"] is None:
        work.respell(call, call.op, {**call.attrs, "scale": old**-0.5})


# -- parameters ------------------------------------------------------------------------------------


def _sliced(work: Work, path: str, before: Selection) -> Tensor | None:
    """What stays of a parameter, of what earlier cuts left of it; None where all of it does."""
    key, whole = work.flow.key(path), tensor_at(work.flow.view.root, path)
    tracks = work.flow.params.get(key, ())
    axes = work.kept.axes(tracks)
    if not axes:
        return None
    if not all(map(len, axes.values())):
        place, hint = Label(None, where=path), "keep at least one feature"
        raise fail("R011", f"nothing would be left of `{path}`", place, help=hint)
    left = work.tensors.get(key, whole.detach())
    return in_format_of(selected(left, since(axes, before.axes(tracks))), (whole,))


def _held(work: Work, path: str) -> None:
    """A parameter that the graph reads by its name."""
    tensor = work.sliced(path)
    if tensor is None:
        return
    owner, name = _owner(work, path), path.rpartition(".")[2]
    old = getattr(owner, name)
    if name in owner._parameters:
        new = nn.Parameter(tensor, requires_grad=old.requires_grad)
        owner._parameters[name] = work.parameters.setdefault(work.flow.key(path), new)
    elif name in owner._buffers:
        owner._buffers[name] = tensor
    else:
        setattr(owner, name, tensor)


def _owner(work: Work, path: str) -> nn.Module:
    """The module that holds a parameter, and that the old model does not hold."""
    place = path.rpartition(".")[0]
    owner = module_at(work.module, place)
    if not place or owner is not module_at(work.flow.view.root, place):
        return owner
    owner = shallow(owner)
    _put(work.module, place, owner)
    return owner


def _put(root: nn.Module, path: str, layer: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    module_at(root, owner).add_module(name, layer)


def _layer(work: Work, call: OpCall) -> None:
    """An op whose parameters were sliced."""
    sized = _sized(work, call)
    if sized:
        work.rewritten.add(call.node)
    attrs, target = {**call.attrs, **sized}, str(call.node.target)
    is_layer = call.node.op == "call_module"
    if is_layer and target not in work.layers:
        work.layers.add(target)
        _build(work, call, target, attrs)
    bare = is_layer and type(module_at(work.module, target)) is nn.Module
    if bare or (not is_layer and attrs != call.attrs):
        work.respell(call, call.op, attrs)


def _build(work: Work, call: OpCall, target: str, attrs: dict[str, Any]) -> None:
    """A layer of the new size. Of a user's own only the declaration says how to make one: its
    parameters are kept as they are, and the op's meaning reads them.
    """
    params = {name: _now(work, path) for name, path in call.params.items()}
    like = module_at(work.flow.view.root, target)
    rank = len(shape_at(call.inputs[0]))
    layer = build_layer(call.op.layers, params, settings(attrs), like, rank)
    if layer is not None:
        _pass_on(work, target, like, layer)
        _put(work.module, target, layer)
        return
    bare = nn.Module()
    bare._parameters, bare._buffers = dict(like._parameters), dict(like._buffers)
    bare._modules = dict(like._modules)
    _put(work.module, target, bare)
    for path in filter(None, call.params.values()):
        _held(work, path)


def _state(work: Work, call: OpCall) -> None:
    """The last state of a recurrent layer is not declared; its last axis is the hidden size."""
    width = _sized(work, call).get("hidden_size")
    if width is not None:
        first, *rest = work.new[call.node].meta["val"]
        work.new[call.node].meta["val"] = (first, *(_as_wide(spec, width) for spec in rest))


def _as_wide(spec: Any, width: int) -> Any:
    if isinstance(spec, TensorSpec):
        return TensorSpec((*spec.shape[:-1], width), spec.dtype)
    return tuple(_as_wide(one, width) for one in spec)


def _sized(work: Work, call: OpCall) -> dict[str, Any]:
    """Settings that are the size of a dimension."""
    found = {}
    for name, vectors in work.flow.sized.get(call.node, {}).items():
        kept = work.kept.axes(joined([vectors])).get(0)
        if kept is not None:
            found[name] = (len(kept),) if call.op.attrs[name].type == "ints" else len(kept)
    return found


def _pass_on(work: Work, target: str, old: nn.Module, layer: nn.Module) -> None:
    """What was not sliced is the very tensor it was; one memory is one parameter, as it was."""
    for name, parameter in list(layer.named_parameters()):
        path = f"{target}.{name}"
        key = work.flow.key(path)
        kept = parameter if key in work.tensors else old.get_parameter(name)
        owner, _, own = name.rpartition(".")
        module_at(layer, owner)._parameters[own] = work.parameters.setdefault(key, kept)
    for name, buffer in old.named_buffers():
        if f"{target}.{name}" not in work.flow.paths:
            layer._buffers[name] = buffer


def _now(work: Work, path: str | None) -> Tensor | None:
    if path is None:
        return None
    sliced = work.sliced(path)
    return tensor_at(work.flow.view.root, path) if sliced is None else sliced
