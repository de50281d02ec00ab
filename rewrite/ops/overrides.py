"""Which subclasses of a layer compute what the layer computes."""

from __future__ import annotations

import inspect
from functools import cache

HARMLESS = frozenset({
    "extra_repr", "_get_name", "reset_parameters", "reset_running_stats", "train", "eval",
    "_version", "state_dict", "_load_from_state_dict", "_save_to_state_dict", "get_extra_state",
    "set_extra_state", "in_features", "out_features", "in_channels", "out_channels",
})  # fmt: skip
"""Overriding one of these does not change what forward computes."""


@cache
def override(kind: type, base: type) -> str:
    """The first method or attribute of `base` that `kind`, or a class between them, redefines and
    that forward may use; "" if there is none.
    """
    mro = inspect.getmro(kind)
    between = mro[: mro.index(base)]
    own = set(dir(base)).union(*(inspect.get_annotations(each) for each in inspect.getmro(base)))
    changed = (sorted(name for name in vars(each) if name in own) for each in between)
    return next((name for names in changed for name in names if _matters(name)), "")


def _matters(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name not in HARMLESS and (not dunder or name in ("__call__", "__getattr__"))
