"""From Python values to arguments of graph nodes."""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import fx, nn

from ..graph.scalars import is_traced
from ..graph.values import Origin, OriginTable, PathStep, children, is_structure
from ..graph.writes import node_name
from ..torch_internals import is_wrapped

_ATOMS = (int, float, bool, complex, str, type(None), type(...), enum.Enum)
_ATOMS += (torch.dtype, torch.device, torch.layout, torch.memory_format, range)

AddNode = Callable[[str, Any, Any, Any, Any], fx.Node]


class Untraceable(Exception):
    """The trace cannot write something down; the text says what and, after a newline, what may
    help.
    """


class Lowering:
    """Turns values into node arguments, adding `get_attr` and item nodes where they are first
    needed.
    """

    def __init__(self, root: nn.Module, add_node: AddNode) -> None:
        self.root, self._add = root, add_node
        self.origins = OriginTable()
        self._nodes: dict[tuple[Any, ...], fx.Node] = {}
        self._state = _state_tensors(root)
        self._constants = 0

    def once(self, key: tuple[Any, ...], make: Callable[[], fx.Node]) -> fx.Node:
        if key not in self._nodes:
            self._nodes[key] = make()
        return self._nodes[key]

    def is_known(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._state or self.origins.get(tensor) is not None

    # -- tensors -------------------------------------------------------------------------------

    def tensor_node(self, tensor: torch.Tensor) -> fx.Node:
        origin = self.origins.get(tensor)
        if origin is not None:
            return self.resolve(origin)
        known = self._state.get(id(tensor))
        path = known[1] if known else self._constant(tensor)
        return self.once((path,), lambda: self._add("get_attr", path, (), {}, tensor))

    def resolve(self, origin: Origin) -> fx.Node:
        """The node for one part of another node's value."""
        node = origin.node
        for step in origin.steps:
            node = self._step(node, step)
        return node

    def _step(self, node: fx.Node, step: PathStep) -> fx.Node:
        function = getattr if step.attribute else operator.getitem
        value = _part(node.meta["val"], step)
        key = (node, step.attribute, step.key)

        def make() -> fx.Node:
            part = self._add("call_function", function, (node, step.key), {}, value)
            part.meta.update(site=node.meta["site"], source=node.meta["source"])
            return part

        return self.once(key, make)

    def _constant(self, tensor: torch.Tensor) -> str:
        """A tensor that was not made by the recorded calls becomes a buffer of the captured
        module; a parameter that no module of the model has registered, one of its own.
        """
        if is_wrapped(tensor):
            raise Untraceable("calls torch.vmap or torch.func on recorded tensors")
        trained = isinstance(tensor, nn.Parameter)
        name = f"{'parameter' if trained else 'constant'}_{self._constants}"
        self._constants += 1
        while hasattr(self.root, name):
            name = f"{name}_"
        held = tensor.detach().clone()
        if trained:
            self.root.register_parameter(name, nn.Parameter(held, tensor.requires_grad))
        else:
            self.root.register_buffer(name, held)
        self._state[id(tensor)] = tensor, name
        return name

    # -- arguments -----------------------------------------------------------------------------

    def lower(self, value: Any) -> Any:
        """`value` as an fx argument. Raises `Untraceable` for an object that a graph cannot
        hold.
        """
        if isinstance(value, torch.Tensor):
            return self.tensor_node(value)
        if is_traced(value):
            return value.node()
        if isinstance(value, slice):
            return slice(*(self.lower(x) for x in (value.start, value.stop, value.step)))
        if type(value) in (tuple, torch.Size):
            return tuple(self.lower(item) for item in value)
        if type(value) is list:
            return [self.lower(item) for item in value]
        if type(value) is dict:
            return {key: self.lower(item) for key, item in value.items()}
        return self.emit(value) if is_structure(value) else self._atom(value)

    def _atom(self, value: Any) -> Any:
        if isinstance(value, (*_ATOMS, type, fx.Node)):
            return value
        if hasattr(value, "item") and type(value).__module__ == "numpy":
            return value.item()
        raise Untraceable(f"passes a `{type(value).__name__}` object to a recorded call")

    def emit(self, value: Any) -> Any:
        """A result of the model as an output argument: like `lower`, but containers keep their
        class.
        """
        if not is_structure(value):
            return self._result(value)
        items = [(step, self.emit(item)) for step, item in children(value)]
        if type(value) in (tuple, list):
            return type(value)(item for _, item in items)
        if type(value) is dict:
            return {step.key: item for step, item in items}
        return self._container(value, items)

    def _container(self, value: Any, items: list[tuple[PathStep, Any]]) -> fx.Node:
        kind = type(value)
        if is_dataclass(value):
            kwargs = {step.key: item for step, item in items}
            return self._add("call_function", kind, (), kwargs, value)
        if isinstance(value, dict):
            pairs = [(step.key, item) for step, item in items]
            return self._add("call_function", kind, (pairs,), {}, value)
        plain = [item for _, item in items]
        args = tuple(plain) if hasattr(kind, "_fields") else (plain,)
        return self._add("call_function", kind, args, {}, value)

    def _result(self, value: Any) -> Any:
        try:
            return self.lower(value)
        except Untraceable:
            raise Untraceable(
                f"returns a `{type(value).__name__}` object, which a graph cannot build\n"
                "return tensors, numbers, tuples, lists, dicts or dataclasses of them"
            ) from None


def _part(spec: Any, step: PathStep) -> Any:
    if isinstance(spec, (dict, list, tuple)):
        return spec[step.key]
    return None


def _state_tensors(root: nn.Module) -> dict[int, tuple[torch.Tensor, str]]:
    """Parameters, buffers and plain tensor attributes by id, with the first path of a shared one.

    The tensors are held, since an id means one only as long as it lives.
    """
    found: dict[int, tuple[torch.Tensor, str]] = {}
    for prefix, module in root.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, value in {**module._parameters, **module._buffers, **module.__dict__}.items():
            if isinstance(value, torch.Tensor):
                found.setdefault(id(value), (value, dot + name))
    return found


def formula(node: fx.Node, names: Mapping[fx.Node, str] | None = None, depth: int = 3) -> str:
    """A short text for what a node computes, for messages; `names` are those of some nodes."""
    if names and node in names:
        return names[node]
    if depth == 0 or node.op in ("placeholder", "get_attr", "call_module"):
        return str(node.target if node.op == "call_module" else node.name)
    args = ", ".join(
        formula(arg, names, depth - 1) if isinstance(arg, fx.Node) else repr(arg)
        for arg in node.args
    )
    return f"{node_name(node)}({args})"
