"""Changes to a grown model in which a rule fires: another reader, a hook, a tied weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from ...ops.spec import spec_of
from .grown import Grown
from .pattern_builder import Planted

Edit = Callable[[Grown], bool]


def _each(grown: Grown, change: Callable[[Planted], bool]) -> bool:
    """Changes every planted instance; false if one cannot be changed so."""
    done = [change(planted) for planted in grown.planted]
    grown.module.graph.lint()
    grown.module.recompile()
    return all(done)


def on_value(name: str, change: Callable[[Grown, fx.Node], bool]) -> Edit:
    """An edit at what a name of the pattern stands for."""

    def at(grown: Grown, planted: Planted) -> bool:
        value = planted.values.get(name)
        return isinstance(value, fx.Node) and change(grown, value)

    return lambda grown: _each(grown, lambda planted: at(grown, planted))


def on_op(index: int, change: Callable[[Grown, fx.Node], bool]) -> Edit:
    """An edit at the node of a pattern op."""

    def at(grown: Grown, planted: Planted) -> bool:
        node = planted.nodes.get(index)
        return node is not None and change(grown, node)

    return lambda grown: _each(grown, lambda planted: at(grown, planted))


def read_again(grown: Grown, value: fx.Node) -> bool:
    """Something else reads it."""
    return give_back(grown, _relu(grown, value))


def hook(grown: Grown, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    layer = grown.module.get_submodule(str(node.target))
    layer.register_forward_hook(lambda module, args, result: result * 1.5)
    return True


def call_again(grown: Grown, node: fx.Node) -> bool:
    """The layer runs a second time, on the same input scaled."""
    if node.op != "call_module" or not isinstance(node.args[0], fx.Node):
        return False
    graph, held = grown.module.graph, node.args[0]
    with graph.inserting_before(_end(graph)):
        half = graph.call_function(torch.mul, (held, 0.5))
        again = graph.call_module(str(node.target), (half, *node.args[1:]), node.kwargs)
    half.meta.update(val=held.meta["val"], site="")
    again.meta.update(val=node.meta["val"], site=node.meta["site"])
    return give_back(grown, again)


def tie(grown: Grown, node: fx.Node) -> bool:
    """Another part of the model reads the first weight, under a name of its own."""
    if node.op != "call_module":
        return False
    layer = grown.module.get_submodule(str(node.target))
    weight = next(iter(layer.parameters()), None)
    if weight is None:
        return False
    name = f"tied_{str(node.target).replace('.', '_')}"
    grown.module.register_parameter(name, weight)  # type: ignore[arg-type]
    graph = grown.module.graph
    with graph.inserting_before(_end(graph)):
        held = graph.get_attr(name)
    held.meta.update(val=spec_of(weight), site="")
    return give_back(grown, _relu(grown, held))


def overwrite(grown: Grown, node: fx.Node) -> bool:
    """An in-place op right behind a matched op changes what that op has read."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    held, graph = node.args[0], grown.module.graph
    if held.op in ("placeholder", "get_attr"):
        held = _copied(grown, held)
    with graph.inserting_after(node):
        changed = graph.call_method("mul_", (held, 2.0))
    changed.meta.update(val=held.meta["val"], site="")
    return give_back(grown, changed)


def _copied(grown: Grown, held: fx.Node) -> fx.Node:
    """Matched ops read a value of the model instead of an input or a weight, which is not theirs
    to change.
    """
    graph = grown.module.graph
    matched = {node for planted in grown.planted for node in planted.nodes.values()}
    readers = [node for node in graph.nodes if node in matched and held in node.all_input_nodes]
    with graph.inserting_before(readers[0]):
        copied = graph.call_function(torch.neg, (held,))
    copied.meta.update(val=held.meta["val"], site="")
    for reader in readers:
        reader.replace_input_with(held, copied)
    _rename(grown, held, copied)
    return copied


def _rename(grown: Grown, old: fx.Node, new: fx.Node) -> None:
    for planted in grown.planted:
        for name, value in planted.values.items():
            if value is old:
                planted.values[name] = new


def _end(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def _relu(grown: Grown, value: fx.Node) -> fx.Node:
    graph = grown.module.graph
    with graph.inserting_before(_end(graph)):
        node = graph.call_function(torch.relu, (value,))
    node.meta.update(val=value.meta["val"], site="")
    return node


def give_back(grown: Grown, node: fx.Node) -> bool:
    """Makes a node one more result of the model."""
    end = _end(grown.module.graph)
    results = (*end.args[0], node)  # type: ignore[misc]
    end.args = (results,)
    end.meta["val"] = tuple(item.meta["val"] for item in results)  # type: ignore[union-attr]
    return True
