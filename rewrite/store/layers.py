"""One layer of torch.nn as its class name and the constructor arguments that make an equal one.

Before a layer is written, the layer its arguments make is compared with it. Layers are built on the
meta device, so a file can claim any size without memory being spent.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...grammar.diagnostics import Label, LissomError, fail
from .. import runtime
from .calls import KEEP_WHOLE
from .values import decode, encode, malformed

# Their constructors take the children, which are stored on their own.
_CONTAINERS = ("Module", "Sequential", "ModuleList", "ModuleDict", "Container")
_MAX_LAYERS = 4096
# Kept apart from the constructor's arguments, in the specs of modules and in the table of tensors.
_APART = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_APART |= {"_chosen"}  # the kernels that an integer layer chose on this machine
_CONSTRUCTION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_Reader = Callable[[Any], object]

# Constructor arguments that are not kept under their own name. Attributes that hold a tensor where
# the argument is a flag (`bias`) need no entry: the flag is whether the tensor is there.
_READERS: dict[str, dict[str, _Reader]] = {
    "MultiheadAttention": {
        "bias": lambda m: m.in_proj_bias is not None,
        "add_bias_kv": lambda m: m.bias_k is not None,
    },
    "AdaptiveLogSoftmaxWithLoss": {"cutoffs": lambda m: m.cutoffs[:-1]},
    "TransformerEncoderLayer": {
        "d_model": lambda m: m.self_attn.embed_dim,
        "nhead": lambda m: m.self_attn.num_heads,
        "dim_feedforward": lambda m: m.linear1.out_features,
        "dropout": lambda m: m.dropout.p,
        "activation": lambda m: _activation_name(m.activation),
        "layer_norm_eps": lambda m: m.norm1.eps,
        "batch_first": lambda m: m.self_attn.batch_first,
        "bias": lambda m: m.linear1.bias is not None,
    },
}
_READERS["TransformerDecoderLayer"] = _READERS["TransformerEncoderLayer"]
# These forward their arguments to RNNBase, so their own signature does not name them.
_RECURRENT = {"RNN": {"mode", "proj_size"}, "LSTM": {"mode"}, "GRU": {"mode", "proj_size"}}

# -- the classes -----------------------------------------------------------------------------------


@functools.cache
def layer_classes() -> dict[str, type[nn.Module]]:
    """Name -> class of torch.nn or of `runtime/` that a graph may call or hold. Lazy and parallel
    modules are not among them.
    """
    lazy = nn.modules.lazy.LazyModuleMixin
    named = {
        name: value
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and not issubclass(value, lazy)
    }
    named["NonDynamicallyQuantizableLinear"] = nn.modules.linear.NonDynamicallyQuantizableLinear
    plain = {n: v for n, v in named.items() if v.__module__.startswith("torch.nn.modules.")}
    own = {name: getattr(runtime, name) for name in runtime.__all__}
    return plain | {name: value for name, value in own.items() if isinstance(value, type)}


def _class_name(module: nn.Module, path: str) -> str:
    name = type(module).__name__
    if layer_classes().get(name) is type(module):
        return name
    parametrized = hasattr(module, "parametrizations")
    raise fail(
        "A010",
        f"`{path}` is a `{type(module).__module__}.{name}`, which cannot be stored",
        Label(None, where=path),
        note="an artifact holds only the exact classes of torch.nn, so that reading one never "
        "runs anyone's code",
        help="call torch.nn.utils.parametrize.remove_parametrizations first"
        if parametrized
        else "write it with torch's own layers and functions, then the graph holds these; or "
        f"{KEEP_WHOLE}",
    )


# -- layer to JSON ---------------------------------------------------------------------------------


def encode_layer(module: nn.Module, path: str) -> tuple[str, dict[str, Any]]:
    """(class name, arguments). Raises A010 for user code, A012 for hooks, A011 where the arguments
    do not make an equal layer.
    """
    name = _class_name(module, path)
    refuse_hooks(module, path)
    arguments = _arguments(module, name, path)
    try:
        twin = layer_from_json(name, arguments, path)
    except LissomError as error:
        raise _differs(path, "the whole layer") from error
    _compare(module, twin, path)
    return name, arguments


def refuse_hooks(module: nn.Module, path: str) -> None:
    """Raises A012 for a module that runs Python code of its own before, after or in forward."""
    found = [name for name in _HOOKS if getattr(module, name)]
    if found or "forward" in vars(module):
        what = found[0] if found else "a forward of its own"
        remedy = "call .remove() of its handle" if found else "delete it (`del layer.forward`)"
        raise fail(
            "A012",
            f"`{path or 'the module'}` carries {what}, which cannot be stored",
            Label(None, where=path or "the module"),
            note="it is Python code, and an artifact holds none",
            help=f"{remedy} before compiling, if the model does without; or {KEEP_WHOLE}",
        )


def _arguments(module: nn.Module, name: str, path: str) -> dict[str, Any]:
    found = {}
    for parameter in _signature(type(module), name):
        value = _argument(module, name, parameter)
        if value is not inspect.Parameter.empty:
            found[parameter.name] = encode(value, path)
    return found


def _signature(kind: type[nn.Module], name: str) -> list[inspect.Parameter]:
    if name in _CONTAINERS:
        return []
    owner = nn.RNNBase if name in _RECURRENT else kind
    skipped = {"self", "device", "dtype"} | _RECURRENT.get(name, set())
    parameters = _parameters(owner)
    if name == "RNN":
        parameters.append(inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY))
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.name not in skipped and p.kind not in variadic]


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    """Those of the constructor; and of the one above where it hands over what it does not name."""
    found: dict[str, inspect.Parameter] = {}
    for owner in kind.__mro__:
        if "__init__" in vars(owner):
            own = inspect.signature(owner.__init__).parameters
            found = {**own, **found}
            if all(p.kind is not p.VAR_KEYWORD for p in own.values()):
                break
    return list(found.values())


def _argument(module: nn.Module, name: str, parameter: inspect.Parameter) -> object:
    """The value of a constructor argument, or `empty` where the module does not keep it."""
    reader = _READERS.get(name, {}).get(parameter.name)
    if reader is not None:
        return reader(module)
    value = getattr(module, parameter.name, inspect.Parameter.empty)
    flag = isinstance(value, torch.Tensor) or (
        value is None and parameter.name in module._parameters
    )
    return value is not None if flag else value


def _activation_name(function: object) -> str:
    name = getattr(function, "__name__", "")
    return name if name in ("relu", "gelu") else "unknown"


# -- the comparison --------------------------------------------------------------------------------


def _compare(module: nn.Module, twin: nn.Module, path: str) -> None:
    """Raises A011 unless the rebuilt layer has the attributes, tensors and children of the
    original.
    """
    mine, theirs = vars(module), vars(twin)
    for name in theirs.keys() - _APART:
        if name not in mine or not _same(mine[name], theirs[name]):
            raise _differs(path, name)
    for name in mine.keys() - theirs.keys():
        if hasattr(twin, name):
            raise _differs(path, name)
    for name, tensor in layer_tensors(twin).items():
        own = layer_tensors(module).get(name)
        if own is None or own.shape != tensor.shape:
            raise _differs(path, name)
    if not twin._modules.keys() <= module._modules.keys():
        raise _differs(path, "children")
    if not module._modules and module.extra_repr() != twin.extra_repr():
        raise _differs(path, "extra_repr")


def _same(one: object, other: object) -> bool:
    """Equal values of one type; for what has no JSON form (tensors, hooks, functions), the type or
    the identity.
    """
    if isinstance(one, types.FunctionType | types.BuiltinFunctionType):
        return one is other
    return type(one) is type(other) and _form(one) == _form(other)


def _form(value: object) -> object:
    try:
        return encode(value, "")
    except LissomError:
        return type(value)


def layer_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    both: Mapping[str, torch.Tensor | None] = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in both.items() if tensor is not None}


def _differs(path: str, name: str) -> LissomError:
    return fail(
        "A011",
        f"`{path}` cannot be rebuilt from its constructor arguments: `{name}` would differ",
        Label(None, where=path),
        note="an attribute was changed after construction, or a tensor does not have the shape "
        "its attributes say",
        help="build a new layer with the arguments it should have, and give it the tensors",
    )


# -- JSON to layer ---------------------------------------------------------------------------------


def layer_from_json(name: str, arguments: Mapping[str, Any], path: str) -> nn.Module:
    """A layer on the meta device. Raises A010 for an unknown class, A025 for arguments it does not
    take.
    """
    kind = layer_classes().get(name)
    if kind is None:
        raise fail(
            "A010",
            f"`{path}` is a `{name}`, which is not stored, or not in torch {torch.__version__}",
            Label(None, where=path),
            help="use the torch version named in manifest.json",
        )
    taken = {parameter.name for parameter in _signature(kind, name)}
    if not arguments.keys() <= taken or _layers(arguments) > _MAX_LAYERS:
        raise malformed(f"gives `{path}` arguments that {name} does not take", "graph.json")
    values = {key: decode(value, path) for key, value in arguments.items()}
    try:
        with torch.device("meta"), _Unfilled():
            return kind(**values)
    except _CONSTRUCTION_ERRORS as error:
        raise malformed(
            f"gives `{path}` arguments that {name} refuses ({error})", "graph.json"
        ) from error


class _Unfilled(TorchFunctionMode):
    """Leaves out start values. On the meta device they mean nothing, yet drawing the first normal
    number there makes torch import its compiler, 1.5 s.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func in _FILLS or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _layers(arguments: Mapping[str, Any]) -> int:
    """A constructor loops over its layers, the one place where a small file could ask for endless
    work.
    """
    count = arguments.get("num_layers", 0)
    return count if type(count) is int else 0
