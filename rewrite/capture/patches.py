"""The few entry points that torch does not report to a function mode, redirected while a trace
runs.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, wraps
from typing import Any, Protocol

import torch
from torch import nn

from ..graph.own import named_functions
from ..graph.scalars import definite, math_functions, traced_choices
from ..graph.values import leaves, without_traces
from ..ops.reported import ReportedCall
from ..torch_internals import silent
from .questions import MODES


class RunningTrace(Protocol):
    """What redirected calls ask of the trace that is running."""

    root: nn.Module
    open: bool

    def module_call(self, module: nn.Module, eager: Any, args: Any, kwargs: Any) -> Any: ...

    def record(self, call: ReportedCall, run: Callable[[], Any]) -> Any: ...

    def tell_mode(self, name: str) -> None: ...


@contextmanager
def recording(recorder: RunningTrace) -> Iterator[None]:
    """Send module calls, autograd functions, scripted functions and `len` of a tensor to the
    recorder.
    """
    with (
        traced_choices(),
        _traced_math(),
        replaced(builtins, "range", lambda eager: _ranges(recorder, eager)),
        replaced(nn.Module, "__call__", lambda eager: _module_call(recorder, eager)),
        replaced(torch.autograd.Function, "apply", lambda eager: _apply(recorder, eager)),
        replaced(torch.jit.ScriptFunction, "__call__", lambda eager: _scripted(recorder, eager)),
        _einops_uncached(),
        replaced(builtins, "len", lambda eager: _length(recorder, eager)),
        ExitStack() as own,
    ):
        for name in (name for name in MODES if name in vars(torch)):
            own.enter_context(replaced(torch, name, lambda eager: _mode(recorder, eager)))
        for owner, name in list(named_functions(recorder.root)):
            own.enter_context(replaced(owner, name, lambda eager: _function(recorder, eager)))
        yield


def _einops_uncached() -> AbstractContextManager[None]:
    """Einops looks shapes up in a cache, which would take each size for a constant; without the
    cache it computes with them.
    """
    einops = sys.modules.get("einops.einops")
    cached = getattr(einops, "_reconstruct_from_shape", None)
    if not hasattr(cached, "__wrapped__"):
        return nullcontext()
    return replaced(einops, "_reconstruct_from_shape", lambda eager: eager.__wrapped__)


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """For a while, what `make` makes of the attribute stands in its place."""
    saved = vars(owner)[name]
    setattr(owner, name, make(saved))
    try:
        yield
    finally:
        setattr(owner, name, saved)


def _mode(recorder: RunningTrace, eager: Any) -> Any:
    """A function that says how torch runs."""

    def asked(*args: Any, **kwargs: Any) -> Any:
        recorder.tell_mode(eager.__name__)
        return eager(*args, **kwargs)

    return asked


def _module_call(recorder: RunningTrace, eager: Any) -> Any:
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not recorder.open:
            return eager(module, *args, **kwargs)
        return recorder.module_call(module, eager, args, kwargs)

    return call


def _function(recorder: RunningTrace, eager: Any) -> Any:
    """A function of a user's own op."""

    @wraps(eager)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not recorder.open:
            return eager(*args, **kwargs)
        return _opaque(recorder, eager, args, kwargs)

    return call


def _apply(recorder: RunningTrace, eager: Any) -> Any:
    """`eager` is a class method, written in Python or in C: both bind by `__get__` alone."""

    def apply(kind: Any, *args: Any, **kwargs: Any) -> Any:
        bound = eager.__get__(None, kind)
        # A function that calls back into the model, such as checkpointing, is traced through.
        callbacks = any(callable(leaf) for _, leaf in leaves((args, kwargs)))
        if not recorder.open or callbacks:
            return bound(*args, **kwargs)
        return _opaque(recorder, _named(bound, kind.__name__, kind.__module__), args, kwargs)

    return classmethod(apply)


def _scripted(recorder: RunningTrace, eager: Any) -> Any:
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not recorder.open:
            return eager(function, *args, **kwargs)
        # The Python function that was scripted; one that was traced, or loaded, has none.
        source = getattr(function, "_torchdynamo_inline", None)
        if source is not None:
            return source(*args, **kwargs)
        return _opaque(
            recorder, _named(eager.__get__(function), function.name, "torch.jit"), args, kwargs
        )

    return call


@cache
def _named(method: Callable[..., Any], name: str, module: str) -> Callable[..., Any]:
    """A function of its own for a bound method, since fx finds the code of a node's target by its
    name.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    return call


def _opaque(recorder: RunningTrace, target: Any, args: Any, kwargs: Any) -> Any:
    """One node for a function that torch runs on its own."""

    def alone() -> Any:
        return target(*without_traces(args), **without_traces(kwargs))

    with silent():
        return recorder.record(ReportedCall("call_function", target, args, kwargs), alone)


@contextmanager
def _traced_math() -> Iterator[None]:
    with ExitStack() as stack:
        for name, function in math_functions():
            stack.enter_context(replaced(math, name, lambda _, function=function: function))
        yield


def _ranges(recorder: RunningTrace, eager: Any) -> Any:
    """`range` as it is, but a traced number that a loop runs over is a guard."""

    class Kind(type):
        def __call__(cls, *bounds: Any) -> Any:
            return eager(*(definite(bound, "looped over") for bound in bounds))

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, eager)

    return Kind("range", (), {})


def _length(recorder: RunningTrace, eager: Any) -> Any:
    def length(value: Any) -> Any:
        if recorder.open and isinstance(value, torch.Tensor) and value.dim():
            return value.shape[0]
        return eager(value)

    return length
