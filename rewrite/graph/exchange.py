"""Other numbers in the place of a parameter or buffer. Old tensors and whoever holds them stay as
they are: the modules on the way are copied first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from .formats import in_format_of


def like(old: Tensor, numbers: Tensor) -> Tensor:
    """`numbers` rounded once to the dtype of `old`, in its memory format: a new tensor, and a
    parameter where the old one is.
    """
    new = in_format_of(numbers.detach().to(old.dtype, copy=True), (old,))
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def exchange(root: nn.Module, paths: Iterable[str], new: Tensor) -> None:
    """Puts one tensor at all these paths of `root`."""
    for path in paths:
        *above, name = path.split(".")
        owner = root
        for part in above:
            copied = shallow(owner.get_submodule(part))
            owner.add_module(part, copied)
            owner = copied
        setattr(owner, name, new)


def shallow(module: nn.Module) -> nn.Module:
    """A module of its own around the same tensors and layers. `copy.copy` leaves it the very tables
    of the old one, so that a write to one would be seen in the other.
    """
    copied = copy.copy(module)
    tables = {key: copy.copy(held) for key, held in vars(module).items() if _is_table(held)}
    vars(copied).update(tables)
    return copied


def own_layers(root: nn.Module, known: dict[nn.Module, nn.Module] | None = None) -> None:
    """Puts copies in the place of all layers, around the same tensors: in which mode they are is
    seen nowhere else. A layer that stands at two places still does.
    """
    known = {} if known is None else known
    for name, layer in root._modules.items():
        if layer is not None and layer not in known:
            known[layer] = shallow(layer)
            own_layers(known[layer], known)
        root._modules[name] = None if layer is None else known[layer]


def _is_table(held: object) -> bool:
    return isinstance(held, (dict, list, set))
