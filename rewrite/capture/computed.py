"""Weights that a layer computes anew in each call from other parameters, stored as they are.

Weight norms, spectral norms, masks of `torch.nn.utils.prune` and parametrizations give the same
weight in each call once training is over. Stored in their place it is the same to the bit, and
rules see the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ...grammar.diagnostics import Diagnostic, Label
from ..graph.modules import is_parametrized

_REMEDIES = {
    "weight_norm": "remove_weight_norm(layer)",
    "spectral_norm": "remove_spectral_norm(layer)",
    "a pruning mask": "prune.remove(layer, 'weight')",
    "a parametrization": "parametrize.remove_parametrizations(layer, 'weight')",
}


def store_computed(model: nn.Module) -> Iterator[Diagnostic]:
    """Put the weights that layers of `model` compute in the places of what they are computed from.

    Yields M012 for each way of computing them.
    """
    paths: dict[str, list[str]] = {}
    for path, module in list(model.named_modules()):
        for kind, name in (*_unparametrized(module), *_unhooked(module)):
            paths.setdefault(kind, []).append(f"{path}.{name}".lstrip("."))
    for kind, found in paths.items():
        yield _note(kind, found)


def _unhooked(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Take off hooks that compute weights, the last one first; yields kinds and names."""
    for hook in reversed(list(module._forward_pre_hooks.values())):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
            yield "weight_norm", hook.name
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            yield "spectral_norm", hook.name
        elif isinstance(hook, prune.BasePruningMethod):
            yield "a pruning mask", _unmasked(module, str(hook._tensor_name))


def _unmasked(module: nn.Module, name: str) -> str:
    """Torch stores the weight in the parameter under the mask, which others may hold without it."""
    old: Any = module._parameters[f"{name}_orig"]
    module._parameters[f"{name}_orig"] = nn.Parameter(old.detach().clone(), old.requires_grad)
    prune.remove(module, name)
    return name


def _unparametrized(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Not by torch's own function: that changes the class of the module, which the one that this is
    a copy of has as well.
    """
    if not is_parametrized(module):
        return
    lists: Any = module._modules["parametrizations"]
    values = {name: getattr(module, name).detach() for name in lists}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    for name, value in values.items():
        trained = list(lists[name].parameters())
        if trained:
            setattr(module, name, nn.Parameter(value, any(p.requires_grad for p in trained)))
        else:
            module.register_buffer(name, value)
        yield "a parametrization", name


def _note(kind: str, paths: list[str]) -> Diagnostic:
    weights = f"`{paths[0]}`" if len(paths) == 1 else f"{len(paths)} weights, `{paths[0]}` first,"
    return Diagnostic(
        "M012",
        f"what {kind} gives for {weights} is stored",
        tuple(Label(None, where=path) for path in paths),
        ("in eval mode each call computes the same; the given model stays as it is",),
        (f"torch.nn.utils.{_REMEDIES[kind]} does so in the model itself",),
        "warning",
    )
