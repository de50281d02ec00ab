"""Captured graphs as modules: dead code, checks, guards."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import fx, nn

from .snapshot import graph_module
from .writes import is_assertion, is_pure

_ROOT_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_ROOT_HOOKS += ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def assertions(graph: fx.Graph) -> set[fx.Node]:
    """The checks of a graph, and what only they read: no part of what the model computes."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        read = node.op.startswith("call_") and bool(node.users) and found.issuperset(node.users)
        if is_assertion(node) or read:
            found.add(node)
    return found


def without_checks(module: nn.Module) -> nn.Module:
    """The module itself, which from now on takes calls that it was not captured for."""
    if isinstance(module, fx.GraphModule):
        checks = assertions(module.graph)
        for node in reversed(module.graph.nodes):
            if node in checks:
                module.graph.erase_node(node)
        module.recompile()
    return module


def readers(node: fx.Node) -> list[fx.Node]:
    """The users of a node that are no part of a check."""
    checks = assertions(node.graph)
    return [user for user in node.users if user not in checks]


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
    module = graph_module(root, graph)
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


def guards_module(root: nn.Module, graph: fx.Graph, asked: Iterable[fx.Node]) -> fx.GraphModule:
    """A module that takes forward's arguments and returns the values of these nodes."""
    new, where = copy_of(graph)
    new.output_node().args = (tuple(where[node] for node in asked),)
    return build(root, new)
