"""Captured graphs as modules: what a node writes to, dead code, guards."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import fx, nn

from .tracer import Guard

_WRITING = ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul")
_WRITING += ("iand", "ior", "ixor", "ilshift", "irshift")
# Functions whose result is always memory of its own.
_FRESH = frozenset({"add", "sub", "mul", "truediv", "matmul", "bmm", "cat", "stack", "linear"})
_FRESH |= {"conv1d", "conv2d", "conv3d", "relu", "gelu", "silu", "softmax", "batch_norm"}
_ROOT_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_ROOT_HOOKS += ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def node_name(node: fx.Node) -> str:
    """The method or function that a node calls, without its module."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def written(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs of a node whose memory it changes. They are kept by position, which survives
    copies of a graph.
    """
    inputs = node.all_input_nodes
    if "mutates" not in node.meta:
        return tuple(inputs) if _looks_writing(node) else ()
    return tuple(inputs[index] for index in node.meta["mutates"])


def aliased(node: fx.Node) -> tuple[fx.Node, ...]:
    """The inputs of a node that its value may share memory with."""
    inputs = node.all_input_nodes
    if "aliases" not in node.meta:
        return () if node.op == "call_function" and node_name(node) in _FRESH else tuple(inputs)
    return tuple(inputs[index] for index in node.meta["aliases"])


def is_pure(node: fx.Node) -> bool:
    """True if a node of a captured graph may go when nothing uses its value."""
    if node.op in ("placeholder", "output") or node.meta.get("effect"):
        return False
    if "mutates" in node.meta:
        return not node.meta["mutates"]
    return not _looks_writing(node)


def _looks_writing(node: fx.Node) -> bool:
    """For nodes that no trace observed: torch marks writing by a trailing underscore, `out=` and
    `inplace=True`.
    """
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    if node.kwargs.get("out") is not None or node.kwargs.get("inplace"):
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return schema.is_mutable
    name = node_name(node)
    marked = name.endswith("_") and not name.endswith("__") and name not in ("and_", "or_")
    return marked or name in _WRITING


def eliminate_dead(graph: fx.Graph) -> None:
    """Remove nodes without users that did nothing but compute their value. Linear in the graph."""
    for node in reversed(graph.nodes):
        if not node.users and is_pure(node):
            graph.erase_node(node)


def build(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A module with exactly the parameters, buffers and submodules of `root` that `graph` refers
    to.
    """
    eliminate_dead(graph)
    graph.lint()
    module = fx.GraphModule(root, graph, class_name=type(root).__name__)
    module.train(False)
    return module


def move_hooks(root: nn.Module, module: fx.GraphModule) -> None:
    """Give the captured module the hooks of the model itself, which no node of the graph can
    run.
    """
    for name in _ROOT_HOOKS:
        setattr(module, name, copy.copy(getattr(root, name)))


def copy_of(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """The same nodes in a new graph, output included, and where each one went."""
    new, where = fx.Graph(), {}
    output = new.graph_copy(graph, where)
    node = new.output(output)
    where[graph.output_node()] = node
    node.meta = dict(graph.output_node().meta)
    return new, where


def guards_module(root: nn.Module, graph: fx.Graph, guards: Iterable[Guard]) -> fx.GraphModule:
    """A module that takes forward's arguments and returns the values that the guards depend on."""
    new, where = copy_of(graph)
    new.output_node().args = (tuple(where[guard.node] for guard in guards),)
    return build(root, new)
