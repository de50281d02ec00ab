"""Calls of ATen operators, as torch.export and exported modules make them, in the words that models
use.

Torch's Python functions and methods are made from the same schemas as its operators, so arguments
keep their places. Where a Python function of the name takes others, the exceptions are here.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from ..torch_internals import OpOverload, OpOverloadPacket
from .spec import TensorSpec

Kind = Literal["call_function", "call_method", "call_module"]
Spelled = tuple[Kind, Any, tuple[Any, ...], dict[str, Any]]
"""Kind of the node, target, positional and named arguments."""

_OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "pow", "matmul", "neg")
}
_OPERATORS |= {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_OPERATORS |= {"div": operator.truediv}
# Written in Python; they begin with the operator's arguments.
_FUNCTIONAL = frozenset({"relu6", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "elu"})
_FUNCTIONAL |= {"leaky_relu", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool1d"}
_FUNCTIONAL |= {"max_pool2d", "max_pool3d"}
_END = torch.iinfo(torch.int64).max
_BUILTIN = types.BuiltinFunctionType


def is_operator(target: Any) -> bool:
    return isinstance(target, (OpOverload, OpOverloadPacket))


def spelled(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled:
    """The call of an ATen operator as a function, method or Python operator; as it is if there is
    none.
    """
    packet = getattr(target, "overloadpacket", target)
    space, _, name = packet._qualified_op_name.partition("::")
    if space == "aten":
        own = _SPECIAL.get(name)
        found = own(args, kwargs) if own is not None else _general(name, args, kwargs)
        if found is not None:
            return found
    return "call_function", target, args, kwargs


def operator_of(name: str, count: int) -> Callable[..., Any] | None:
    """Python's operator for a function of torch of that name with `count` arguments."""
    return _OPERATORS.get(name) if count == (1 if name == "neg" else 2) else None


def _general(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    own = None if kwargs else operator_of(name, len(args))
    if own is not None:
        return "call_function", own, args, kwargs
    functional = getattr(nn.functional, name, None)
    if isinstance(functional, _BUILTIN) or name in _FUNCTIONAL:
        return "call_function", functional, args, kwargs
    function = getattr(torch, name, None)
    if isinstance(function, _BUILTIN):
        return "call_function", function, args, kwargs
    return ("call_method", name, args, kwargs) if hasattr(torch.Tensor, name) else None


def _size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    return "call_method", "size", args, kwargs


def _slice(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    usual: tuple[Any, ...] = (0, None, None, 1)
    x, at, start, end, step = (*args, *usual[len(args) - 1 :])
    axis = _axis(x, at)
    if kwargs or axis is None:
        return None
    part = slice(start or None, None if end == _END else end, None if step == 1 else step)
    return "call_function", operator.getitem, (x, (*(slice(None),) * axis, part)), {}


def _select(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    axis = _axis(args[0], args[1])
    if kwargs or axis is None:
        return None
    return "call_function", operator.getitem, (args[0], (*(slice(None),) * axis, args[2])), {}


def _axis(x: Any, axis: int) -> int | None:
    """An axis counted from the front; None if that cannot be said."""
    known = x.meta.get("val") if hasattr(x, "meta") else x
    rank = len(known.shape) if isinstance(known, (TensorSpec, torch.Tensor)) else None
    return axis if axis >= 0 else None if rank is None else axis + rank


def _embedding(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    if kwargs or any(args[3:]):
        return None
    pad = (args[2],) if len(args) > 2 and args[2] >= 0 else ()
    return "call_function", nn.functional.embedding, (args[1], args[0], *pad), {}


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    if kwargs or len(args) != 9:
        return None
    x, weight, bias, mean, variance, *settings = args[:8]
    return (
        "call_function",
        nn.functional.batch_norm,
        (x, mean, variance, weight, bias, *settings),
        {},
    )


def _layer_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    return "call_function", nn.functional.layer_norm, args[:5], kwargs


def _einsum(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spelled | None:
    # `path` is an order of evaluation.
    known = not kwargs.keys() - {"path"} and len(args) == 2
    return ("call_function", torch.einsum, (args[0], *args[1]), {}) if known else None


_SPECIAL: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Spelled | None]] = {
    "sym_size": _size,
    "slice": _slice,
    "select": _select,
    "einsum": _einsum,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
}
