"""Writing a verified plan into the graph: the one place that changes it for rules over ops; by now
nothing can fail.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.emit import Emitted, constant, emit
from ..graph.formats import in_format_of
from ..graph.writes import is_pure
from ..match.repeats import is_equal
from ..match.site import Site
from ..measure.observing import hand_on
from ..ops.call import tensor_at
from ..ops.runtime_size import RuntimeSize, mapped
from ..ops.spec import TensorSpec
from ..rules.scope import ParamRef
from ..rules.state import State
from ..torch_internals import is_erased, order_of
from .begins import inherited
from .planned import Plan, Planned


def emit_plan(state: State, site: Site, plan: Plan) -> dict[Planned, Emitted]:
    """The layers and calls of a plan, with weights rounded to their final precision, in the memory
    format of those of the site. Changes nothing.
    """
    paths = [path for call in site.calls for path in call.params.values() if path]
    origins = [tensor_at(state.module, path) for path in paths]
    return {planned: _emit(state, planned, origins) for planned in plan.ops}


def _emit(state: State, planned: Planned, origins: Sequence[Tensor]) -> Emitted:
    if not planned.op.params:
        return Emitted(planned.op, (None,) * len(planned.op.inputs), {}, planned.attrs, None)
    params = {
        name: _rounded(state, planned, value, origins) for name, value in planned.params.items()
    }
    inputs = tuple(_stand_in(value) for value in planned.inputs)
    inputs += (None,) * (len(planned.op.inputs) - len(inputs))
    return emit(planned.op, inputs, params, planned.attrs, _origin_layer(state, planned))


def _rounded(
    state: State, planned: Planned, value: Tensor | ParamRef | None, origins: Sequence[Tensor]
) -> Tensor | None:
    """A weight that is passed on stays the same tensor, unless others go on reading it."""
    if isinstance(value, ParamRef):
        tensor = value.tensor.detach()
        return tensor.clone() if len(state.readers(value.path)) > 1 else tensor
    if value is None:
        return None
    return in_format_of(value.to(planned.stored(value), copy=True), origins)


def _stand_in(value: Any) -> Any:
    """Planned inputs have no node yet; a tensor without memory carries their shape."""
    if isinstance(value, tuple):
        return tuple(map(_stand_in, value))
    if isinstance(value, Planned):
        return torch.empty(value.specs[0].shape, dtype=value.specs[0].dtype, device="meta")
    return value


def _origin_layer(state: State, planned: Planned) -> nn.Module | None:
    node = planned.origin.node if planned.origin is not None else None
    if node is None or node.op != "call_module":
        return None
    return state.module.get_submodule(str(node.target))


# -- placing ---------------------------------------------------------------------------------------


def insertion_point(site: Site, plan: Plan, inputs: Iterable[fx.Node]) -> fx.Node | None:
    """The node in front of which the new ops can stand: behind all they read, before all that reads
    them.
    """
    inside = set(site.nodes)
    users = [user for node in site.outputs.values() for user in node.users if user not in inside]
    last = site.calls[-1].node
    first = min(users, key=order_of, default=last)
    point = min(first, last, key=order_of)
    fits = all(order_of(node) < order_of(point) for node in inputs)
    return point if fits else None


# -- committing ------------------------------------------------------------------------------------


def commit(
    state: State,
    site: Site,
    plan: Plan,
    emitted: dict[Planned, Emitted],
    point: fx.Node,
    shrinks: bool,
) -> list[fx.Node]:
    """Inserts the plan before `point`, redirects the outputs and removes what nothing reads.
    Returns the new nodes.

    `shrinks`: the site has fewer ops than before, so a rule that matches its own result still ends.
    """
    state.flow = None
    gone, alike = list(site.gone), site.repeats
    _drop_layers(state, site)
    heirs = _heritage(site, "" if shrinks else site.rule.name)
    new: dict[Planned, fx.Node] = {}
    for planned in plan.ops:
        new[planned] = _insert(state, site, planned, emitted[planned], new, point, heirs)
    state.shared |= dict.fromkeys(alike, tuple(str(node.target) for node in new.values()))
    for name, node in site.outputs.items():
        heir = _node_of(plan.outputs[name], new)
        hand_on(node, heir)
        state.view.replace(node, heir)
    _erase(state, gone)
    return list(new.values())


def _node_of(value: Any, new: dict[Planned, fx.Node]) -> fx.Node:
    return new[value] if isinstance(value, Planned) else value


def _insert(
    state: State,
    site: Site,
    planned: Planned,
    emitted: Emitted,
    new: dict[Planned, fx.Node],
    point: fx.Node,
    heirs: dict[str, Any],
) -> fx.Node:
    place = planned.origin.node if planned.origin is not None else site.calls[0].node
    home = str(place.meta.get("site") or "")
    heirs = {**heirs, "captured": place.meta.get("captured", place.name)}

    def node_of(value: Any) -> fx.Node:
        if isinstance(value, Tensor):
            kept = value.to(planned.stored(value), copy=True)
            return constant(state.module, point, fresh_path(state, home, site.rule.name), kept)
        if not isinstance(value, RuntimeSize):
            return _node_of(value, new)
        # Not `node_of`: a function that holds itself, and what it sees, waits for the collector.
        return _size_node(state, value, partial(_node_of, new=new), point, {**heirs, "site": home})

    given = tuple(_with_nodes(value, node_of) for value in planned.inputs)
    emitted.inputs = given + (None,) * (len(emitted.inputs) - len(given))
    emitted.attrs = {name: mapped(value, node_of) for name, value in emitted.attrs.items()}
    path = _shared_path(state, site, emitted, len(new))
    if path:
        node = emitted.insert(state.module, point, path, again=True)
    else:
        path = fresh_path(state, home, site.rule.name) if planned.op.params else f"{home}."
        node = emitted.insert(state.module, point, path)
    spec = planned.specs[0] if len(planned.specs) == 1 else planned.specs
    node.meta.update(
        heirs,
        val=spec,
        site=path if node.op == "call_module" else path.rpartition(".")[0],
        source=place.meta.get("source"),
        **inherited(planned, emitted),
    )
    for held in node.all_input_nodes:
        _describe_weight(state, held, node)
    state.view.add(node)
    return node


def _shared_path(state: State, site: Site, emitted: Emitted, number: int) -> str:
    """Where the same layer is already, made for a site that this one repeats; "" if nowhere."""
    paths = state.shared.get(site.calls[0].node, ())
    path = paths[number] if number < len(paths) else ""
    found = _at(state.module, path) if path else None
    return path if isinstance(found, nn.Module) and is_equal(found, emitted.layer) else ""


def _describe_weight(state: State, held: fx.Node, reader: fx.Node) -> None:
    """`get_attr` nodes that came with a functional call are new nodes too."""
    if held.op == "get_attr" and "val" not in held.meta:
        owner, _, name = str(held.target).rpartition(".")
        tensor = getattr(state.module.get_submodule(owner), name)
        held.meta.update(
            val=TensorSpec(tuple(tensor.shape), tensor.dtype),
            site=owner,
            source=reader.meta.get("source"),
        )
        state.view.add(held)


def _with_nodes(value: Any, node_of: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_with_nodes(item, node_of) for item in value)
    return node_of(value) if isinstance(value, (Planned, RuntimeSize, Tensor)) else value


def _size_node(
    state: State,
    size: RuntimeSize,
    node_of: Callable[[Any], fx.Node],
    point: fx.Node,
    meta: Mapping[str, Any],
) -> fx.Node:
    """The node that computes a size when the model runs: a new one before `point`."""

    def done(node: fx.Node) -> None:
        node.meta.update(meta, mutates=(), aliases=())
        state.view.add(node)

    with state.module.graph.inserting_before(point):
        return size.insert(state.module.graph, node_of, done)


def _heritage(site: Site, rule: str) -> dict[str, Any]:
    """What new nodes inherit: the rules in their ancestry, and the nodes of the captured model they
    stand for.
    """
    rules = {name for call in site.calls for name in call.node.meta.get("rules", ())}
    return {"rules": tuple(sorted(rules | ({rule} if rule else set()))), "origins": origins(site)}


def origins(site: Site) -> tuple[str, ...]:
    """The nodes of the captured model that a site stands for, by name."""
    found = (call.node.meta.get("origins") or (call.node.name,) for call in site.calls)
    return tuple(sorted({name for names in found for name in names}))


def fresh_path(state: State, site: str, rule: str) -> str:
    """`<site>.<rule>_<n>`; beside the site where its layer lives on. Never a path that exists. What
    this rule has made already is named once.
    """
    home, _, last = site.rpartition(".")
    site = home if last.startswith(f"{rule}_") else site
    base, stem = (
        (site, rule)
        if not _holds_layer(state.module, site)
        else (site.rpartition(".")[0], f"{rule}_{site.rpartition('.')[2]}")
    )
    while True:
        name = f"{stem}_{state.count(f'{base}.{stem}')}"
        path = f"{base}.{name}" if base else name
        if not _exists(state.module, path):
            return path


def _holds_layer(module: nn.Module, path: str) -> bool:
    """Whether something that computes lives at `path`; a bare container does not."""
    found = _at(module, path)
    return isinstance(found, nn.Module) and type(found) is not nn.Module


def _exists(module: nn.Module, path: str) -> bool:
    return _at(module, path) is not None


def _at(module: nn.Module, path: str) -> Any:
    """What lives at `path`: a module, a weight, any attribute; None if nothing does."""
    owner: Any = module
    for part in path.split(".") if path else ():
        owner = getattr(owner, part, None) if isinstance(owner, nn.Module) else None
    return owner


# -- removing --------------------------------------------------------------------------------------


def _drop_layers(state: State, site: Site) -> None:
    """Frees the paths of layers that only removed nodes use."""
    leaving = {call.node for call in site.removed}
    for node in leaving:
        _free_layer(state, node, leaving)


def _free_layer(state: State, node: fx.Node, leaving: set[fx.Node]) -> None:
    """Takes a layer out of the model if only nodes that leave use it."""
    call = state.view.call(node)
    if node.op != "call_module" or call is None or not _reachable(state, node):
        return
    paths = [path for path in call.params.values() if path]
    readers = (owner for path in paths for owner in state.view.owners(path))
    others = {reader for reader, held in readers if held in paths} - leaving
    if not others and not _called_elsewhere(state, node, leaving):
        state.module.delete_submodule(str(node.target))


def _called_elsewhere(state: State, node: fx.Node, leaving: set[fx.Node]) -> bool:
    """Layers without weights have no owners to ask; their op's nodes tell."""
    call = state.view.call(node)
    if call is None or any(call.params.values()):
        return False
    return any(
        other.target == node.target and other not in leaving
        for other in state.view.calls_of(call.op.name)
    )


def _erase(state: State, nodes: list[fx.Node]) -> None:
    """Erases matched nodes, then whatever only they read and does nothing else."""
    waiting, matched = sorted(nodes, key=order_of), set(nodes)
    while waiting:
        node = waiting.pop()
        if node.users or is_erased(node) or node.op in ("placeholder", "output"):
            continue
        feeders = node.all_input_nodes
        state.view.forget(node)
        _no_more_writes(state, node)
        state.module.graph.erase_node(node)
        _drop_weight(state, node)
        feeders = [feeder for feeder in feeders if feeder not in matched and not feeder.users]
        idle = [feeder for feeder in feeders if _only_computes(state, feeder)]
        for feeder in idle:
            _free_layer(state, feeder, {feeder})
        waiting += idle


def _no_more_writes(state: State, node: fx.Node) -> None:
    """Whether it wrote is not asked of it: its layer may be gone already."""
    at = bisect_left(state.mutations, order_of(node), key=order_of)
    if state.mutations[at : at + 1] == [node]:
        del state.mutations[at]


def _reachable(state: State, node: fx.Node) -> bool:
    return node.op != "call_module" or _exists(state.module, str(node.target))


def _only_computes(state: State, node: fx.Node) -> bool:
    """Whether a node may go when nobody reads it. An opaque layer may do more than it says."""
    return is_pure(node, state.module if state.view.call(node) is not None else None)


def _drop_weight(state: State, node: fx.Node) -> None:
    """A weight whose last `get_attr` went is no longer part of the model."""
    if node.op != "get_attr":
        return
    path = str(node.target)
    owner, _, name = path.rpartition(".")
    if any(held == path for _, held in state.view.owners(path)):
        return
    delattr(state.module.get_submodule(owner), name)
