"""What lissom takes from torch beyond its public interface: here and nowhere else.

Each of it is asked for when it is used, and asked for all at once by `missing`, so that a release
of torch without it is named instead of doing something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "Heard", "heard", "is_wrapped", "silent", "tree_flatten", "tree_leaves", "tree_map",
    "tree_unflatten", "version_of",
]  # fmt: skip


def silent() -> Any:
    """A context in which calls are reported to no function mode."""
    return torch._C.DisableTorchFunction()


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a transform of torch.func holds the tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; tensors made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


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
