"""Values that do not depend on the input, computed once and stored.

A weight that forward derives from parameters (weight standardisation, a gathered position bias)
becomes a parameter of its own, so that rules see `conv2d(x, weight)`. The stored value is the one
the same calls give, so nothing changes in any bit. That includes memory which the graph makes and
writes constants to, the bias of which a slice is set to zero, say. Left alone: what reads a random
number or uninitialised memory, what is written to otherwise, plain views of a parameter (which
would break the tie to it), and values more than four times larger than what they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ...grammar.checks.declared import BUFFERS
from ...grammar.reached import reached
from ..graph.own import known_ops
from ..graph.ties import storage_key
from ..graph.writes import is_pure, may_share, node_name
from ..ops.spec import spec_of
from .constant_views import separable
from .written_memory import Memory, written_memory

_GROWTH = 4
_SMALL_BYTES = 1 << 20
_UNINITIALISED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@dataclass(frozen=True, slots=True)
class Folded:
    """One stored value: the path it is stored under, and the names of the nodes that computed
    it.
    """

    path: str
    nodes: tuple[str, ...]


def fold_constants(module: fx.GraphModule) -> tuple[Folded, ...]:
    """Replace computed constants of a captured module by `get_attr` nodes, in place, bit for bit
    equal.
    """
    found = _Constants(module)
    computed = list(found.frontier())
    weights = [
        node
        for node in computed
        if _role(module, node) != "constant" or _is_operand(module, node, found)
    ]
    apart = separable(module, weights, found.values)
    folded = [item for node in computed for item in _fold(module, found, node, apart)]
    if folded or found.replaced:
        found.drop_dead()
        drop_unused_state(module)
        module.recompile()
    return tuple(folded)


class _Constants:
    """The constant nodes of a graph and their values."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.values: dict[fx.Node, Any] = {}
        self.sources: dict[fx.Node, frozenset[fx.Node]] = {}
        self.replaced = 0
        self.memory = written_memory(module.graph)
        self.varying = {memory for memory in self.memory.values() if not memory.is_own}
        with torch.no_grad():
            for node in module.graph.nodes:
                if self._foldable(node):
                    self._evaluate(node)
                if node in self.memory and node not in self.values:
                    self._discard(self.memory[node])
        for memory in set(self.memory.values()) - self.varying:
            if memory.is_seen_before_it_is_written(self.values):
                self._discard(memory)
        self.storages = {
            storage_key(value): node for node, value in self.values.items() if node.op == "get_attr"
        }

    def _foldable(self, node: fx.Node) -> bool:
        memory = self.memory.get(node)
        if node.op == "get_attr":
            return memory is None
        if memory in self.varying or node.meta.get("effect"):
            return False
        if node.op not in ("call_function", "call_method") or node_name(node) in _UNINITIALISED:
            return False
        known = all(source in self.values for source in node.all_input_nodes)
        return known and (memory is not None or is_pure(node))

    def _evaluate(self, node: fx.Node) -> None:
        before = _random_states()
        value = _compute(self.module, node, self.values)
        if any(not torch.equal(a, b) for a, b in zip(before, _random_states(), strict=True)):
            torch.set_rng_state(before[0])
            return
        if node.op != "get_attr" or isinstance(value, torch.Tensor):
            self.values[node] = value
            own = (node,) if node.op == "get_attr" else ()
            parts = (self.sources[source] for source in node.all_input_nodes)
            self.sources[node] = frozenset(own).union(*parts)
        if node in self.memory:
            self._tell(self.memory[node], self.sources[node])

    def _tell(self, memory: Memory, sources: frozenset[fx.Node]) -> None:
        """What is written to one part of a memory is a source of all of it."""
        for other in memory.nodes:
            if other in self.sources:
                self.sources[other] |= sources

    def _discard(self, memory: Memory) -> None:
        """Something that is not constant makes, writes or reads it."""
        self.varying.add(memory)
        for node in memory.nodes:
            self.values.pop(node, None)

    def drop_dead(self) -> None:
        """Erases constants that nothing reads; what writes to a memory goes once nobody sees it."""
        for node in reversed(list(self.values)):
            memory = self.memory.get(node)
            if not node.users and (memory is None or memory.is_unseen()):
                self.module.graph.erase_node(node)

    def frontier(self) -> Iterator[fx.Node]:
        """Computed constant tensors that something which is not constant uses."""
        for node, value in list(self.values.items()):
            outside = any(user not in self.values for user in node.users)
            computed = node.op != "get_attr" and isinstance(value, torch.Tensor)
            if computed and outside and not _escapes(node):
                yield node


def _random_states() -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return states + (torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])


def _escapes(node: fx.Node) -> bool:
    """True if the caller may get hold of the memory of a value, and write to it."""
    views = reached([node], lambda at: [user for user in at.users if at in may_share(user)])
    return any(user.op == "output" for at in views for user in at.users)


def _compute(module: nn.Module, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return _attribute(module, str(node.target))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: values[source])
    if node.op == "call_function":
        function: Any = node.target
        return function(*args, **kwargs)
    return getattr(args[0], str(node.target))(*args[1:], **kwargs)


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _fold(
    module: fx.GraphModule, found: _Constants, node: fx.Node, apart: set[fx.Node]
) -> Iterator[Folded]:
    value = found.values[node]
    origin = found.storages.get(storage_key(value)) if value.numel() else None
    if origin is not None:
        reused = _use_origin(node, value, origin, found.values[origin])
        found.replaced += reused
        if reused or node not in apart:
            return
    sources = found.sources[node]
    if not _affordable(value, [found.values[source] for source in sources]):
        return
    role = _role(module, node)
    path = _fresh_path(module, node, role)
    made_of = [found.values[source] for source in sources]
    _store(module, path, _as_state(value, "weight" if origin is not None else role, made_of))
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(path)
    stored.meta.update(
        val=spec_of(value),
        site=node.meta.get("site", ""),
        source=node.meta.get("source", ""),
        mutates=(),
    )
    _redirect(node, stored, found.values)
    yield Folded(path, _ancestors(node, found.memory))


def _use_origin(node: fx.Node, value: torch.Tensor, origin: fx.Node, whole: torch.Tensor) -> int:
    """A call that only hands a parameter on (`contiguous`, `to` its own dtype) is the parameter."""
    same = value.shape == whole.shape and value.stride() == whole.stride()
    if not same or value.dtype != whole.dtype or value.data_ptr() != whole.data_ptr():
        return 0
    _redirect(node, origin, {})
    return 1


def _redirect(node: fx.Node, new: fx.Node, constants: Iterable[fx.Node]) -> None:
    """Let every user that stays read `new` instead of `node`."""
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in constants)


def _affordable(value: torch.Tensor, sources: list[torch.Tensor]) -> bool:
    given = sum(source.numel() * source.element_size() for source in sources)
    return value.numel() * value.element_size() <= max(_GROWTH * given, _SMALL_BYTES)


def _fresh_path(module: nn.Module, node: fx.Node, role: str) -> str:
    stem = f"{node.meta.get('site', '')}.folded_{role}".lstrip(".")
    path, count = stem, 1
    while _exists(module, path):
        count += 1
        path = f"{stem}_{count}"
    return path


def _role(module: fx.GraphModule, node: fx.Node) -> str:
    """The weight or bias of an op that the value is, by its declaration; else `constant`."""
    for user in node.users:
        readers = known_ops().readers(user, module)
        for reader in () if isinstance(readers, str) else readers:
            weights = [param.name for param in reader.op.params if param.name not in BUFFERS]
            role = next((name for name in reader.given_as(user, node) if name in weights), None)
            if role is not None:
                return role
    return "constant"


def _is_operand(module: fx.GraphModule, node: fx.Node, found: _Constants) -> bool:
    """Whether what works element by element alone reads it: a gain or shift of channels, say. Other
    calls may compute otherwise for a parameter that wants gradients than for a view of one.
    """
    return all(user in found.values or _is_elementwise(module, user) for user in node.users)


def _is_elementwise(module: fx.GraphModule, node: fx.Node) -> bool:
    ops = [known_ops()[name] for name in known_ops().candidates(node, module)]
    return bool(ops) and all("elementwise" in op.traits and not op.params for op in ops)


def _exists(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def _as_state(value: torch.Tensor, role: str, sources: list[torch.Tensor]) -> torch.Tensor:
    """A parameter if the value is a weight or bias made of parameters, else a tensor for a buffer.

    Other tables become buffers because attention picks another kernel for a bias that wants
    gradients.
    """
    trained = [source for source in sources if isinstance(source, nn.Parameter)]
    if role == "constant" or not trained or not value.is_floating_point():
        return value.clone()
    return nn.Parameter(value.clone(), requires_grad=any(s.requires_grad for s in trained))


def _store(module: nn.Module, path: str, value: torch.Tensor) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(module, parent):
            module.add_module(parent, nn.Module())
        module = getattr(module, parent)
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def _ancestors(node: fx.Node, memory: Mapping[fx.Node, Memory]) -> tuple[str, ...]:
    """Names of the computing nodes behind a constant, itself first."""

    def behind(at: fx.Node) -> tuple[fx.Node, ...]:
        if at.op == "get_attr":
            return ()
        return (*at.all_input_nodes, *(memory[at].nodes if at in memory else ()))

    return tuple(at.name for at in reached([node], behind) if at.op != "get_attr")


def drop_unused_state(module: fx.GraphModule) -> None:
    """Delete parameters, buffers and submodules that no node refers to."""
    ops = ("get_attr", "call_module")
    used = {str(node.target) for node in module.graph.nodes if node.op in ops}
    for path in [name for name, _ in _state(module)]:
        parts = path.split(".")
        if not any(".".join(parts[: end + 1]) in used for end in range(len(parts))):
            owner = module.get_submodule(".".join(parts[:-1]))
            delattr(owner, parts[-1])
    module.delete_all_unused_submodules()


def _state(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
