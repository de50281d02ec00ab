"""Parameters as rules range over them: one memory each, with all its paths and readers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from ...grammar.checks.declared import is_weight
from ..graph.memory import memory_of
from ..graph.places import lies_at, node_at
from ..graph.ties import storage_key
from ..graph.writes import written
from ..ops.call import OpCall, tensor_at
from ..rules.scope import ParamRef
from ..rules.state import State


@dataclass(frozen=True, slots=True, eq=False)
class ParamPlace:
    """One memory: how the first op of the set reads it, and all its paths in the model."""

    ref: ParamRef
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.ref.path


def params_of(state: State, ops: Collection[str]) -> list[ParamPlace]:
    """What ops of these names read as a weight, each memory once, in the order of the model; "_"
    names them all.
    """
    found: dict[Any, ParamRef] = {}
    for ref in _refs(state, ops):
        found.setdefault(storage_key(ref.tensor), ref)
    paths: dict[Any, list[str]] = {}
    for path, tensor in _held(state.module):
        paths.setdefault(storage_key(tensor), []).append(path)
    return [ParamPlace(ref, tuple(paths[key])) for key, ref in found.items()]


def _refs(state: State, names: Collection[str]) -> Iterator[ParamRef]:
    scope = state.scope({})
    for call in _calls(state, names):
        for name in weight_names(call):
            ref = scope.param(call, name)
            if ref is not None and isinstance(ref.tensor, Tensor):
                yield ref


def _calls(state: State, names: Collection[str]) -> Iterator[OpCall]:
    """The ops of the set. Raises T008 where this torch hides one of them."""
    if "_" in names:
        nodes = list(state.module.graph.nodes)
    else:
        nodes = sorted(node for name in sorted(names) for node in state.view.calls_of(name))
    return (call for node in nodes if (call := state.view.call(node)) is not None)


def weight_names(call: OpCall) -> list[str]:
    return [param.name for param in call.op.params if is_weight(param.name)]


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def is_same(state: State, param: ParamPlace, path: str) -> bool:
    """Whether the tensor at `path` is the parameter, and no other view of its memory."""
    one, two = param.ref.tensor, tensor_at(state.module, path)
    places = [(x.storage_offset(), tuple(x.shape), x.stride(), x.dtype) for x in (one, two)]
    return places[0] == places[1]


def writer_of(state: State, param: ParamPlace) -> fx.Node | None:
    """A node that changes the memory while the model runs."""
    holders = {node for node, _ in state.view.owners(param.name) if node.op == "get_attr"}
    for node in state.mutations if holders else ():
        changed = written(node, state.module)
        if any(holders & memory_of(state.view, value) for value in changed):
            return node
    return None


def param_at(state: State, param: ParamPlace, glob: str) -> bool:
    """A parameter lies at its own paths, and where it is read."""
    if any(lies_at(path, glob) for path in param.paths):
        return True
    return any(node_at(node, glob) for node in state.readers(param.name))
