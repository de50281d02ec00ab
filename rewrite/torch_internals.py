"""What lissom takes from torch that has no public name: here and nowhere else.

`absent` asks for all of it, so that a release of torch without one of the names is told apart from
a model that cannot be captured.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx.node import _get_qualified_name as qualified_name
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "FUSED_ENCODER", "Heard", "OpOverload", "OpOverloadPacket", "TorchDispatchMode", "absent",
    "checked", "codegen_of", "heard",
    "is_erased", "is_wrapped", "operator_names", "order_of", "qualified_name", "schema_of",
    "silent", "tree_flatten", "tree_leaves", "tree_map", "tree_unflatten", "unreported",
    "version_of",
]  # fmt: skip

FUSED_ENCODER = "_transformer_encoder_layer_fwd"
"""The kernel that an encoder layer may run as, by its name in `torch`."""

unreported = torch._C._disabled_torch_function_impl
"""As `__torch_function__` of a class: its instances are reported to nobody."""

checked = torch._assert
"""Raises AssertionError with a message, as a node of a graph."""

order_of = attrgetter("_sort_key")
"""A key of nodes of one graph, in the order of the graph."""

is_erased = attrgetter("_erased")
"""Whether a node has left its graph."""

schema_of = attrgetter("_schema")
"""What an operator of the dispatcher takes and gives."""

codegen_of = attrgetter("_codegen")
"""What writes the code of a graph."""


def silent() -> Any:
    """A context in which calls are reported to no function mode."""
    return torch._C.DisableTorchFunction()


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of torch.func holds the tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor that transforms of torch.func hold, whose memory can be asked for."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; tensors made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def operator_names() -> list[str]:
    """The names of all operators of the dispatcher, as `aten::add.Tensor`."""
    return torch._C._dispatch_get_all_op_names()


def absent() -> list[str]:
    """Those of the names above, and of the attributes of modules that are read, which this torch
    does not have.
    """
    graph = fx.Graph()
    asked: list[tuple[Any, str]] = [
        (torch, FUSED_ENCODER),
        (torch, "_assert"),
        (torch._C, "DisableTorchFunction"),
        (torch._C, "_dispatch_get_all_op_names"),
        (torch._C._functorch, "is_functorch_wrapped_tensor"),
        (torch._C._functorch, "get_unwrapped"),
        (torch.ones(()), "_version"),
        (torch.ops.aten.add.Tensor, "_schema"),
        (graph, "_codegen"),
        *((graph.placeholder("x"), name) for name in ("_sort_key", "_erased")),
        *((nn.Module(), name) for name in _MODULE),
    ]
    return [f"{type(owner).__name__}.{name}" for owner, name in asked if not hasattr(owner, name)]


_MODULE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_MODULE += ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULE += ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_MODULE += ("_forward_pre_hooks_with_kwargs",)


# -- what torch reports ----------------------------------------------------------------------------

Heard = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function as torch reports it, and its arguments."""


class _Stop(Exception):
    pass


class _Ear(TorchFunctionMode):
    """Takes the first call that torch reports; it is not made."""

    found: Heard | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.found = func, args, dict(kwargs or {})
        raise _Stop


def heard(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Heard | None:
    """What torch reports first when `function` is called; None where it reports nothing. Raises
    what a call that torch cannot report raises.
    """
    ear = _Ear()
    try:
        with ear:
            function(*args, **kwargs)
    except _Stop:
        pass
    return ear.found


_UNTRACED = frozenset(
    {len, bool, int, float, isinstance, min, max, round, sum}
    | {operator.is_, operator.is_not, operator.not_, operator.truth, operator.contains}
    | {function for function in vars(math).values() if callable(function)}
)
"""Functions of Python that run on what a trace hands around, instead of being written down."""


def mark_untraced(graph: fx.Graph, *, done: bool = False) -> None:
    """Marks calls for `torch.save`: it keeps the code of a graph, and reading it traces that code.
    What is marked is written down then; the rest of Python's functions would run on proxies.

    done: nothing will change the graph any more. Only then are functions outside of torch marked:
    torch keeps the name of what is marked for good, and a node that gets another target, or whose
    `meta` is copied, would take the mark along.
    """
    for node in graph.nodes:
        own = done and _is_own(node.target)
        if node.op == "call_function" and (own or node.target in _UNTRACED):
            node.meta["is_wrapped"] = True


def _is_own(function: object) -> bool:
    """Whether a function is written in Python and not torch's: a trace goes into its code."""
    module = getattr(function, "__module__", None) or ""
    return isinstance(function, types.FunctionType) and module.partition(".")[0] != "torch"
