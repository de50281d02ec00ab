"""Which functions, operators and tensor methods a stored graph may call: tensor compute, and
nothing else.

The table is built from torch's own list of functions that take tensors (`torch.overrides`), the
arithmetic of `operator`, `math` and the builtins, a short list of functions that create tensors,
and the operators registered with the dispatcher. A name from a file is only ever a key of this
table. Left out are functions that reach files, other memory, Python callables, autograd's hooks or
other processes.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node
from torch.overrides import get_overridable_functions

from ..grammar.diagnostics import Label, LissomError, did_you_mean, fail
from .containers import container_line, container_of
from .torch_internals import OpOverload, operator_names, schema_of
from .value_json import malformed, require_local, require_path


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
_BUILTINS = _words("abs bool divmod float int len list max min pow round sum")
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

# -- the tables ------------------------------------------------------------------------------------


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Dotted name -> function: everything that nodes may call but operators."""
    table: dict[str, Callable[..., Any]] = {"getattr": builtins.getattr}
    allowed = (pair for pair in _candidates() if pair[0].rpartition(".")[2] not in _FORBIDDEN)
    return table | dict(allowed)


def _candidates() -> Iterator[tuple[str, Callable[..., Any]]]:
    yield from ((name, getattr(builtins, name)) for name in _BUILTINS)
    yield from _of("operator", operator, set(operator.__all__) - _NOT_ARITHMETIC)
    yield from _of("math", math, {name for name in vars(math) if not name.startswith("_")})
    known = _tensor_functions()
    spaces = ("torch", torch), ("torch.nn.functional", torch.nn.functional)
    more = tuple((f"torch.{name}", getattr(torch, name)) for name in ("linalg", "fft", "special"))
    for prefix, space in spaces + more:
        named = {name for name, value in vars(space).items() if id(value) in known}
        # The list leaves out functions in place, and what only creates or only forwards.
        named |= {f"{name}_" for name in named} | set(_MORE.get(prefix, ()))
        yield from _of(prefix, space, named)


def _of(prefix: str, space: types.ModuleType, names: set[str]) -> Iterator[tuple[str, Any]]:
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
def _names() -> dict[int, str]:
    """Identity of a function -> the first of its names."""
    names: dict[int, str] = {}
    for name, function in functions().items():
        names.setdefault(id(function), name)
    return names


@functools.cache
def _registered() -> frozenset[str]:
    return frozenset(operator_names())


@functools.cache
def _overload(name: str) -> Any:
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


def _is_compute(overload: Any, base: str) -> bool:
    arguments = [(argument.name, str(argument.type)) for argument in schema_of(overload).arguments]
    takes_tensors = any("Tensor" in kind for _, kind in arguments)
    return (takes_tensors or base in _CREATORS) and all(name != "filename" for name, _ in arguments)


# -- calls to JSON and back ------------------------------------------------------------------------


def encode_target(node: Node) -> str:
    """What a node calls or names, as text. Raises A013 or A014 for a callee outside the tables,
    A016 for a name.
    """
    if node.op == "call_function":
        return _function_name(node)
    target = str(node.target)
    return check_target(node.op, target, f"node {node.name}")


def check_target(op: str, target: str, where: str) -> str:
    """The text of a target that is no function, checked. Raises A014, A016 or A025."""
    if op == "placeholder":
        require_local(re.sub(r"^\*{1,2}", "", target), "the input name", where)
    elif op in ("get_attr", "call_module"):
        require_path(target, "the path", where)
    elif op == "call_method" and target not in methods():
        raise _not_callable("A014", f"the method `{target}`", where, methods(), target)
    elif op == "output" and target != "output":
        raise malformed(f"has an output called {target!r}", where)
    return target


def decode_function(name: str, where: str) -> Callable[..., Any]:
    """The function of a stored name. Raises A013 where this torch has none that may be called."""
    found = functions().get(name) or _overload(name) or container_of(name)
    if found is None:
        raise _not_callable("A013", f"the function `{name}`", where, functions().keys(), name)
    return found


def check_call(node: Node) -> None:
    """Refuse attribute access beyond `ATTRIBUTES` (A015) and methods of anything but a value
    (A014).
    """
    where = f"node {node.name}"
    if node.op == "call_method" and not (node.args and isinstance(node.args[0], Node)):
        raise _not_callable("A014", f"the method `{node.target}` of a constant", where, (), "")
    if node.target is not builtins.getattr:
        return
    if (
        node.kwargs
        or len(node.args) != 2
        or not isinstance(node.args[0], Node)
        or node.args[1] not in ATTRIBUTES
    ):
        raise fail(
            "A015",
            f"reads the attribute {node.args[1:]!r}, which cannot be stored",
            Label(None, where=where),
            note="stored are " + ", ".join(sorted(ATTRIBUTES)),
            help="read the attribute inside the model's code, before compression",
        )


def _function_name(node: Node) -> str:
    target: Any = node.target
    if isinstance(target, OpOverload):
        name = f"torch.ops.{target}"
        if _overload(name) is target:
            return name
    name = _names().get(id(target)) or container_line(target)
    if name is None:
        space, own = getattr(target, "__module__", ""), getattr(target, "__qualname__", str(target))
        shown = f"the function `{space}.{own}`"
        keep = KEEP_WHOLE if _importable(space, own, target) else KEEP_STATE
        raise _not_callable("A013", shown, f"node {node.name}", functions().keys(), str(own), keep)
    return name


KEEP_WHOLE = (
    "keep the result with torch.save(result.model, FILE), which imports its code when it is read"
)
KEEP_STATE = (
    "keep the result's numbers with torch.save(result.model.state_dict(), FILE), and compile again "
    "before reading them"
)
"""What can be done with a model that an artifact cannot hold, whose code has a name or has none."""


def _importable(module: str, name: str, target: Any) -> bool:
    return getattr(sys.modules.get(module), name, None) is target


def _not_callable(
    code: str, what: str, where: str, known: Any, name: str, keep: str = ""
) -> LissomError:
    return fail(
        code,
        f"{what} cannot be stored",
        Label(None, where=where),
        note=f"an artifact calls only tensor functions and methods of torch {torch.__version__}, "
        "operator, math and a few builtins, so that reading one never runs anyone's code",
        help="; ".join(
            (
                *did_you_mean(name, known),
                "write it with torch's own functions" + (f", or {keep}" if keep else ""),
            )
        ),
    )
