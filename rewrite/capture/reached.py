"""Modules that a model reaches without registering them: through lambdas, closures, partial
functions, lists and dicts.

`copy.deepcopy` takes functions as they are, so those of a copied model still lead to the original.
Here they are bound again to the copy, and modules that no parent has registered get a parent, so
that their weights have a name and rules see them as layers.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

_KEPT = frozenset(
    {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
)


def bind_reached(work: nn.Module, memo: dict[int, Any]) -> None:
    """Lead everything among the attributes of a copied model to the copy. `memo` is deepcopy's: the
    copy of each object by the identity of the original.
    """
    parts = list(work.modules())
    registered = set(map(id, parts))
    for module in parts:
        reached = _Reached(module, memo, registered)
        for name, value in list(module.__dict__.items()):
            if name not in _KEPT:
                reached.name = name
                new = reached.of(value)
                if new is not value:
                    module.__dict__[name] = new


class _Reached:
    """What the attributes of one module lead to. `name` is the attribute that is looked at."""

    def __init__(self, owner: nn.Module, memo: dict[int, Any], registered: set[int]) -> None:
        self.owner, self.memo, self.registered = owner, memo, registered
        self.name = ""
        self.entered: set[int] = set()

    def of(self, value: Any, original: bool = False) -> Any:
        """`value` with parts of the copy in place of those of the original; itself if nothing
        changes. `original`: it was not copied yet, for a function holds it.
        """
        if isinstance(value, (nn.Module, Tensor)):
            return self._part(value, original)
        if type(value) is types.FunctionType:
            return self.memo.get(id(value)) or self._function(value)
        if type(value) is functools.partial:
            parts = (value.func, value.args, value.keywords)
            func, args, keywords = self._items(parts, original)
            changed = any(a is not b for a, b in zip(parts, (func, args, keywords), strict=True))
            return functools.partial(func, *args, **keywords) if changed else value
        if type(value) in (list, tuple, dict) or isinstance(value, OrderedDict):
            return self._container(value, original)
        return value

    def _container(self, value: Any, original: bool) -> Any:
        if id(value) in self.entered:
            return value
        self.entered.add(id(value))
        old = list(value.values()) if isinstance(value, dict) else list(value)
        new = self._items(old, original)
        self.entered.discard(id(value))
        if not _changed(old, new):
            return value
        if not isinstance(value, dict):
            return type(value)(new)
        made = copy.copy(value) if original else value  # torch holds on to its table of hooks
        made.update(zip(value, new, strict=True))
        return made

    def _items(self, values: Any, original: bool) -> list[Any]:
        return [self.of(value, original) for value in values]

    def _part(self, value: Any, original: bool) -> Any:
        known = self.memo.get(id(value))
        if known is not None:
            return known
        if isinstance(value, nn.Module) and id(value) not in self.registered:
            value = copy.deepcopy(value, self.memo) if original else value
            self._register(value)
        return value

    def _register(self, module: nn.Module) -> None:
        name, count = f"{self.name.strip('_')}_0", 0
        while hasattr(self.owner, name):
            count += 1
            name = f"{self.name.strip('_')}_{count}"
        self.owner.add_module(name, module)
        self.registered.update(id(part) for part in module.modules())

    def _function(self, value: types.FunctionType) -> Any:
        """The function with cells and defaults of its own, where they hold anything to bind."""
        self.memo[id(value)] = value  # one that holds itself ends here
        cells = [cell for cell in value.__closure__ or () if not _empty(cell)]
        held = [cell.cell_contents for cell in cells]
        new = self._items(held, original=True)
        defaults = self._items(value.__defaults__ or (), original=True)
        if not _changed(held, new) and not _changed(value.__defaults__ or (), defaults):
            return value
        fresh = {id(cell): types.CellType(item) for cell, item in zip(cells, new, strict=True)}
        closure = tuple(fresh.get(id(cell), cell) for cell in value.__closure__ or ())
        bound = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, tuple(defaults) or None, closure
        )
        bound.__kwdefaults__ = value.__kwdefaults__
        bound.__dict__.update(value.__dict__)
        bound.__qualname__ = value.__qualname__
        self.memo[id(value)] = bound
        return bound


def _changed(old: Any, new: Any) -> bool:
    return any(a is not b for a, b in zip(old, new, strict=True))


def _empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:  # a name that was never given a value
        return True
