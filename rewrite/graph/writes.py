"""What a node does to memory: which inputs it changes, which ones its value may be a part of, and
whether anybody misses it when nothing reads its value.

What a trace observed counts: `meta["mutates"]` and `meta["aliases"]` hold positions, which survive
copies of a graph. For nodes that no trace saw, torch marks writing by a trailing underscore,
`out=`, `inplace=True` and the operators of augmented assignment, and nothing marks a view.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..ops.call import OpCall, module_at
from ..ops.callables import IN_PLACE_OPERATORS
from ..torch_internals import checked

_AUGMENTED = frozenset(n for n in IN_PLACE_OPERATORS if hasattr(torch.Tensor, f"__{n}__"))
"""Without `@=`: a tensor has no such method, and Python makes a new one instead."""

_METHODS = frozenset(f"__{name}__" for name in (*_AUGMENTED, "setitem", "delitem"))
_OPERATORS = frozenset(getattr(operator, name) for name in (*_AUGMENTED, "setitem", "delitem"))


def node_name(node: fx.Node) -> str:
    """The method or function that a node calls, without its module."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def writes(node: fx.Node, module: fx.GraphModule | None = None) -> bool:
    """Whether running the node changes a tensor that existed before. A layer that no trace saw is
    looked up in `module`; without one it may do anything.
    """
    if "mutates" in node.meta:
        return bool(node.meta["mutates"])
    if node.op == "call_module":
        return module is None or bool(_layer_writes(module, str(node.target)))
    return node.op in ("call_function", "call_method") and _spelled(node)


def written(node: fx.Node, module: fx.GraphModule | None = None) -> tuple[fx.Node, ...]:
    """The inputs of a node whose memory it changes."""
    inputs = node.all_input_nodes
    if "mutates" in node.meta:
        return tuple(inputs[index] for index in node.meta["mutates"] if index < len(inputs))
    if not writes(node, module):
        return ()
    target = node.kwargs.get("out") or (node.args[0] if node.args else None)
    return (target,) if isinstance(target, fx.Node) else tuple(inputs)


def may_share(node: fx.Node, call: OpCall | None = None) -> tuple[fx.Node, ...]:
    """The inputs that the value of a node may share memory with: those that a trace observed, and
    those that the declaration of `call`, the op that the node is, allows at other sizes. What is
    neither observed nor an op may be memory of any of its inputs.
    """
    inputs = node.all_input_nodes
    if "aliases" not in node.meta and call is None:
        return tuple(inputs)
    positions = node.meta.get("aliases", ())
    observed = [inputs[index] for index in positions if index < len(inputs)]
    return tuple(dict.fromkeys((*observed, *_declared(call))))


def _declared(call: OpCall | None) -> list[fx.Node]:
    if call is None or not (call.in_place or "alias" in call.op.traits):
        return []
    operands = call.inputs[:1] if call.in_place else call.inputs
    flat = (
        o for operand in operands for o in (operand if isinstance(operand, tuple) else [operand])
    )
    return [operand for operand in flat if isinstance(operand, fx.Node)]


def is_assertion(node: fx.Node) -> bool:
    """Whether a node checks that a call is one that the graph was captured for."""
    return node.target is checked


def is_pure(node: fx.Node, module: fx.GraphModule | None = None) -> bool:
    """True if a node may go when nothing uses its value. A layer that no trace saw is looked up in
    `module`; without one it stays.
    """
    kept = node.op in ("placeholder", "output") or node.meta.get("effect") or is_assertion(node)
    return not kept and not writes(node, module)


def _layer_writes(module: fx.GraphModule, path: str) -> bool:
    return bool(getattr(module_at(module, path), "inplace", False))


def _spelled(node: fx.Node) -> bool:
    if node.kwargs.get("out") is not None or node.kwargs.get("inplace"):
        return True
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return schema.is_mutable
    if getattr(target, "__module__", "") == "_operator":  # `and_` only avoids a word of Python
        return target in _OPERATORS
    name = node_name(node)
    return (name.endswith("_") and not name.endswith("__")) or name in _METHODS
