"""Which modules stay one node of the captured graph."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import fx, nn

from ..ops.overrides import override
from .own import is_own

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_STACKS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
"""Made of torch.nn's own layers, which rules want to see."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def is_leaf(module: nn.Module) -> bool:
    """True for torch.nn's own modules, for subclasses of them that change nothing forward uses, and
    for the layers of a user's own ops.
    """
    if isinstance(module, torch.jit.ScriptModule) or is_own(module):
        return True
    base = _torch_base(type(module))
    opened = base is None or issubclass(base, (*_CONTAINERS, *_STACKS))
    if opened or "forward" in module.__dict__:
        return False
    return not override(type(module), base)


def has_hooks(module: nn.Module) -> bool:
    """True if hooks, or parametrizations, are attached to the module itself.

    Hooks that a library puts on its own models are part of its forward and do not count.
    """
    hooks = (hook for name in _HOOKS for hook in (getattr(module, name, None) or {}).values())
    return any(not _is_own(hook, module) for hook in hooks) or is_parametrized(module)


def _is_own(hook: Any, module: nn.Module) -> bool:
    function = inspect.unwrap(getattr(hook, "func", hook))
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    installed = getattr(sys.modules.get(package), "__file__", None) or ""
    if package == "torch":
        return False
    return package == type(module).__module__.partition(".")[0] and "-packages" in installed


def is_parametrized(module: nn.Module) -> bool:
    return "parametrizations" in module._modules


def _torch_base(kind: type) -> type | None:
    """The first class in the resolution order that torch.nn itself defines, nn.Module excluded."""
    for base in inspect.getmro(kind):
        if base is nn.Module:
            return None
        if base.__module__.startswith(("torch.nn.", "torch.ao.nn.")):
            return base
    return None


def is_exported(module: nn.Module) -> bool:
    """Whether it is what torch.export makes: its graph holds the mode that it was exported in, and
    it refuses `eval()`.
    """
    return isinstance(module, fx.GraphModule) and "eval" in module.__dict__
