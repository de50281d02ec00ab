"""The copy of a model that a capture works on: without wrappers, and with gradients forgotten."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...grammar.diagnostics import Label, fail
from ..graph.modules import has_hooks
from ..graph.ties import copies_of_views
from .reached import bind_reached

_TABLES = {"_modules", "_parameters", "_buffers"}


def unwrapped(model: nn.Module) -> nn.Module:
    """What `torch.compile` or a data-parallel wrapper runs; the model itself if it is no wrapper.

    A wrapper with hooks of its own is kept: they would be lost.
    """
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def _inner(module: nn.Module) -> nn.Module | None:
    if has_hooks(module):
        return None
    # The class is known by its name: importing it would cost seconds.
    if type(module).__module__.startswith("torch._dynamo."):
        return module._modules.get("_orig_mod")
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return module.module if isinstance(module, parallel) else None


def uncompiled() -> AbstractContextManager[Any]:
    """While this is entered, functions under `torch.compile` run as they are written."""
    # Without torch._dynamo nothing was compiled, and importing it would cost seconds.
    return (
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules
        else nullcontext()
    )


def own_copy(model: nn.Module) -> nn.Module:
    """A deep copy in which each wrapper is replaced by what it wraps. Raises M004 if there can be
    none.
    """
    memo: dict[int, Any] = dict(copies_of_views(model))
    memo |= {id(part): part for part in _uncopied(model)}
    wrappers = [(module, inner) for module in model.modules() if (inner := _inner(module))]
    try:
        with _Forgetful():
            # From the inside out: a wrapper may wrap another one.
            for wrapper, inner in reversed(wrappers):
                memo[id(wrapper)] = copy.deepcopy(inner, memo)
            work = copy.deepcopy(model, memo)
    except Exception as error:
        raise fail(
            "M004",
            f"the model cannot be copied: {type(error).__name__}: {error}",
            Label(None, where=_uncopyable(model)),
            note="capture works on a copy, so that the given model is never changed",
            help="store computed tensors as buffers, and drop locks, files and generators",
        ) from error
    for module in work.modules():
        _bind_again(module, memo)
    bind_reached(work, memo)
    return work


def _uncopyable(model: nn.Module) -> str:
    """The path of the first attribute that deepcopy refuses; "" if it is none by itself."""
    for path, module in model.named_modules():
        for name in sorted(module.__dict__.keys() - _TABLES):
            try:
                with _Forgetful():
                    copy.deepcopy(module.__dict__[name])
            except Exception:
                return f"{path}.{name}".lstrip(".")
    return ""


def _uncopied(model: nn.Module) -> Iterator[Any]:
    """Functions that hold no state, and that deepcopy refuses."""
    held = (value for module in model.modules() for value in module.__dict__.values())
    yield from (value for value in held if isinstance(value, torch.jit.ScriptFunction))


def _bind_again(module: nn.Module, memo: dict[int, Any]) -> None:
    """A compiled method among the attributes is a function, so its copy belongs to the original."""
    for name, value in module.__dict__.items():
        method = getattr(value, "_torchdynamo_orig_callable", None)
        owner = getattr(method, "__self__", None)
        if isinstance(method, MethodType) and id(owner) in memo:
            module.__dict__[name] = MethodType(method.__func__, memo[id(owner)])


class _Forgetful(TorchFunctionMode):
    """Copies tensors with a gradient history, which deepcopy refuses, without that history.

    Modules keep such tensors wherever they like: an activation in a list, a loss in a dict.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[1].setdefault(id(args[0]), args[0].detach().clone())
        return func(*args, **(kwargs or {}))
