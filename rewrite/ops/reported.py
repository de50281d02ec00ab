"""How a call that torch reports is written in the graph: operators as operators, methods as
methods.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .aten import Kind, is_operator, operator_of, spelled


@dataclass(frozen=True, slots=True)
class ReportedCall:
    """A call as the graph spells it. `forced`: its result is a definite Python value that the model
    reads.
    """

    kind: Kind
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    forced: bool = False


# Weighted functions are always written by position, so that a rule finds the weight in one place.
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = (*_CONV[:5], "output_padding", "groups", "dilation")
_PARAMETERS: dict[str, tuple[str, ...]] = {"linear": _CONV[:3]}
_PARAMETERS |= {f"conv{axes}d": _CONV for axes in (1, 2, 3)}
_PARAMETERS |= {f"conv_transpose{axes}d": _CONV_TRANSPOSE for axes in (1, 2, 3)}

# Methods behind Python's operators. `x + y` and `x.add(y)` reach torch as the same call; the
# operator is kept.
_DUNDERS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_DUNDERS += ("lshift", "rshift", "eq", "ne", "lt", "le", "gt", "ge", "neg", "abs", "invert")
_DUNDERS += ("getitem", "setitem", "contains")
_INPLACE = ("iand", "ior", "ixor", "ilshift", "irshift", "ifloordiv", "imod", "ipow", "itruediv")
_METHODS: dict[str, Callable[..., Any]] = {
    f"__{name}__": getattr(operator, f"__{name}__") for name in _DUNDERS + _INPLACE
}
_METHODS |= {"__div__": operator.truediv, "__idiv__": operator.itruediv}
_REVERSED: dict[str, Callable[..., Any]] = {
    f"__r{name}__": getattr(operator, f"__{name}__") for name in _DUNDERS[:13]
}
_REVERSED |= {"__rdiv__": operator.truediv}

# Methods that end in a Python value which the model goes on to use.
_FORCED: dict[str, Callable[..., Any] | str] = {
    "__bool__": bool,
    "__int__": int,
    "__float__": float,
    "__index__": operator.index,
    "__len__": len,
    "__contains__": operator.contains,
    "is_nonzero": bool,
    "tolist": "tolist",
    "numpy": "tolist",
    "__array__": "tolist",
}
_FORCED_FUNCTIONS = (torch.equal, torch.allclose, torch.is_nonzero)
NUMBERS = frozenset({"size", "numel", "nelement", "item"})

# Calls that describe the machinery of overriding itself, never the computation.
INTERNAL = frozenset({torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.is_tensor})


# What another layout would make an error: an integer kernel answers in channels_last. Where a view
# is possible, torch promises that these are one.
_VIEWS = {"view": "reshape", "view_as": "reshape_as"}


def canonical_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReportedCall:
    name = getattr(func, "__name__", "")
    if is_operator(func):
        kind, target, args, kwargs = spelled(func, args, kwargs)
        return ReportedCall(kind, target if kwargs else _viewed(target, args), args, kwargs)
    if is_getter(func):
        return ReportedCall("call_function", getattr, (args[0], getter_name(func)), {})
    if not _is_method(func):
        args, kwargs = _in_order(_PARAMETERS.get(name, ()), args, kwargs)
        return ReportedCall("call_function", func, args, kwargs, func in _FORCED_FUNCTIONS)
    if name in _FORCED:
        return _forced(_FORCED[name], args)
    if kwargs:
        return ReportedCall("call_method", name, args, kwargs)
    return _operator(name, args)


def _in_order(
    names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments given by name moved to their positions, as far as no position is left out."""
    rest, placed = dict(kwargs), list(args)
    for name in names[len(args) :]:
        if name not in rest:
            break
        placed.append(rest.pop(name))
    return tuple(placed), rest


def _operator(name: str, args: tuple[Any, ...]) -> ReportedCall:
    if name in _METHODS:
        return ReportedCall("call_function", _METHODS[name], args, {})
    if name in _REVERSED:
        return ReportedCall("call_function", _REVERSED[name], (args[1], args[0]), {})
    own = operator_of(name, len(args))
    if own is not None:
        return ReportedCall("call_function", own, args, {})
    return ReportedCall("call_method", _viewed(name, args), args, {})


def _viewed(name: Any, args: tuple[Any, ...]) -> Any:
    """A method by its name; a view as another type is other numbers of the same bytes."""
    typed = any(isinstance(arg, torch.dtype) for arg in args)
    return _VIEWS.get(name, name) if isinstance(name, str) and not typed else name


def _forced(target: Callable[..., Any] | str, args: tuple[Any, ...]) -> ReportedCall:
    if isinstance(target, str):
        return ReportedCall("call_method", target, args[:1], {}, True)
    return ReportedCall("call_function", target, args, {}, True)


def is_getter(func: Any) -> bool:
    """True for the reading of a property such as `x.shape`."""
    return getattr(func, "__name__", "") == "__get__"


def getter_name(func: Any) -> str:
    owner = func.__self__
    return getattr(owner, "fget", owner).__name__


def is_setter(func: Any) -> bool:
    return getattr(func, "__name__", "") in ("__set__", "__delete__")


def _is_method(func: Any) -> bool:
    if isinstance(func, (types.MethodDescriptorType, types.WrapperDescriptorType)):
        return True
    return torch.overrides.is_tensor_method_or_property(func)
