"""Which functions, operators and tensor methods a graph may call where a file names them: tensor
compute, and nothing else.

The table is built from torch's own list of functions that take tensors (`torch.overrides`), the
arithmetic of `operator`, `math` and the builtins, a short list of functions that create tensors,
the operators registered with the dispatcher, and `runtime/`. A name from a file is only ever a key
of this table. Left out are functions that reach files, other memory, Python callables, autograd's
hooks or other processes.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import get_overridable_functions

from .. import runtime
from ..torch_internals import OpOverload, operator_names, schema_of


def _words(text: str) -> list[str]:
    return re.findall(r"\S+", text)


_CREATORS = _words(
    "arange as_strided as_tensor bartlett_window blackman_window broadcast_shapes can_cast "
    "empty empty_permuted empty_strided eye fill full hamming_window hann_window is_tensor "
    "kaiser_window linspace logspace normal ones promote_types rand rand_like randint "
    "randint_like randn randn_like randperm range result_type scalar_tensor tensor "
    "tril_indices triu_indices vander zeros _assert _pack_padded_sequence _pad_packed_sequence"
)
_MORE = {
    "torch": _CREATORS,
    "torch.nn.functional": _words("hardsigmoid hardswish sigmoid tanh upsample"),
}
_MORE_METHODS = _words(
    "__abs__ __ipow__ __itruediv__ __neg__ __pos__ __pow__ __rtruediv__ new_empty new_full "
    "new_ones new_tensor new_zeros stride unflatten"
)
# Taken here and now: a capture that is under way has others in place of some.
_BUILTINS = {
    name: getattr(builtins, name)
    for name in _words("abs bool divmod float int len list max min pow round sum")
}
_MATH = types.SimpleNamespace(**vars(math))
_NOT_ARITHMETIC = {"attrgetter", "itemgetter", "methodcaller", "call", "length_hint"}
# By base name, in every table: pickling, callables, hooks, autograd's engine, raw memory, files,
# streams, printing.
_FORBIDDEN = frozenset(
    _words(
        "apply_ map_ map2_ backward register_hook register_post_accumulate_grad_hook "
        "retain_grad requires_grad_ storage untyped_storage storage_type data_ptr "
        "const_data_ptr set_ set set_data numpy share_memory_ is_shared record_stream "
        "module_load _print __array__ __array_wrap__ __deepcopy__ __dlpack__ "
        "__dlpack_device__ __format__ __reduce_ex__ __repr__ __setstate__ autocast "
        "get_gradients"
    )
)
_NAMESPACES = ("aten", "onednn", "mkldnn", "quantized")
ATTRIBUTES = frozenset(
    _words(
        "H T data device dtype imag indices is_cpu is_cuda itemsize layout mH mT nbytes ndim "
        "real requires_grad shape values"
    )
)
_OVERLOAD = re.compile(r"torch\.ops\.([a-z0-9_]+)\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Dotted name -> function: everything that nodes may call but operators."""
    table: dict[str, Callable[..., Any]] = {"getattr": builtins.getattr}
    allowed = (pair for pair in _candidates() if pair[0].rpartition(".")[2] not in _FORBIDDEN)
    return table | dict(allowed)


def _candidates() -> Iterator[tuple[str, Callable[..., Any]]]:
    yield from _BUILTINS.items()
    yield from _of("operator", operator, set(operator.__all__) - _NOT_ARITHMETIC)
    yield from _of("math", _MATH, {name for name in vars(math) if not name.startswith("_")})
    yield from _of("runtime", runtime, set(runtime.__all__))
    known = _tensor_functions()
    spaces = ("torch", torch), ("torch.nn.functional", torch.nn.functional)
    more = tuple((f"torch.{name}", getattr(torch, name)) for name in ("linalg", "fft", "special"))
    for prefix, space in spaces + more:
        named = {name for name, value in vars(space).items() if id(value) in known}
        # The list leaves out functions in place, and what only creates or only forwards.
        named |= {f"{name}_" for name in named} | set(_MORE.get(prefix, ()))
        yield from _of(prefix, space, named)


def _of(prefix: str, space: Any, names: set[str]) -> Iterator[tuple[str, Any]]:
    for name in sorted(names):
        value = getattr(space, name, None)
        if callable(value) and not isinstance(value, type):
            yield f"{prefix}.{name}", value


def _tensor_functions() -> set[int]:
    spaces = get_overridable_functions().values()
    return {id(function) for space in spaces for function in space}


@functools.cache
def methods() -> frozenset[str]:
    """Names a `call_method` node may call."""
    listed = get_overridable_functions()[torch.Tensor]
    names = {getattr(function, "__name__", "_") for function in listed}
    public = {name for name in names if not name.startswith("_") or _is_dunder(name)}
    return frozenset((public | set(_MORE_METHODS)) - _FORBIDDEN)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


@functools.cache
def names_by_identity() -> dict[int, str]:
    """Identity of a function -> the first of its names."""
    found: dict[int, str] = {}
    for name, function in functions().items():
        found.setdefault(id(function), name)
    return found


@functools.cache
def _registered() -> frozenset[str]:
    return frozenset(operator_names())


@functools.cache
def overload(name: str) -> Any:
    """The operator `torch.ops.namespace.name.overload`, or None where it is not one a graph may
    call.
    """
    match = _OVERLOAD.fullmatch(name)
    if match is None:
        return None
    space, base, overload = match.groups()
    qualified = f"{space}::{base}" + ("" if overload == "default" else f".{overload}")
    if space not in _NAMESPACES or base in _FORBIDDEN or qualified not in _registered():
        return None
    packet = getattr(getattr(torch.ops, space), base)
    found = getattr(packet, overload, None)
    return found if isinstance(found, OpOverload) and _is_compute(found, base) else None


def _is_compute(found: Any, base: str) -> bool:
    arguments = [(argument.name, str(argument.type)) for argument in schema_of(found).arguments]
    takes_tensors = any("Tensor" in kind for _, kind in arguments)
    return (takes_tensors or base in _CREATORS) and all(name != "filename" for name, _ in arguments)
