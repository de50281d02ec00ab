"""Which torch callable a dotted name in a declaration stands for: an allow-list, never an import
of what a file names.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...grammar.diagnostics import Label, LissomError, Span, did_you_mean, fail
from .allowed import functions, methods

_ROOTS: dict[str, Any] = {
    "torch.nn.functional": nn.functional,
    "torch.nn": nn,
    "torch.special": torch.special,
    "torch": torch,
    "operator": operator,
    "Tensor": torch.Tensor,
}
_RENAMED = {"operator.modulo": operator.mod}
"""Names that hold a word of the language, `mod`."""

PROPERTIES = frozenset({"T", "mT"})
"""Properties of a tensor that compute. Of the others, `shape` and `dtype` describe, and `H` is for
complex numbers."""

_AUGMENTED = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
IN_PLACE_OPERATORS = frozenset(f"i{name}" for name in _AUGMENTED.split(" "))


@functools.cache
def _allowed() -> frozenset[int]:
    return frozenset(map(id, functions().values()))


def lookup(dotted: str, own: Mapping[str, Any]) -> Any | None:
    """The function, module class or (for `Tensor.name`) method descriptor of a dotted name.

    `own` are names that the host program adds. None for a name outside torch's tensor functions,
    nn.Module classes, arithmetic operators and tensor methods.
    """
    if dotted in own or dotted in _RENAMED:
        return own.get(dotted) or _RENAMED[dotted]
    root, _, name = dotted.rpartition(".")
    found = getattr(_ROOTS.get(root), name, None)
    return found if found is not None and _is_compute(found, root, name) else None


def resolve(dotted: str, own: Mapping[str, Any], span: Span) -> Any:
    """As `lookup`; raises T003 instead of answering None."""
    found = lookup(dotted, own)
    if found is None:
        raise _unknown(dotted, span)
    return found


def _is_compute(found: Any, root: str, name: str) -> bool:
    if root == "Tensor":
        return name in methods() or name in PROPERTIES
    if isinstance(found, type):
        return root == "torch.nn" and issubclass(found, nn.Module)
    return id(found) in _allowed()


def in_place_variant(dotted: str) -> Any | None:
    """`torch.relu_` for `torch.relu`, if torch has it."""
    root, _, name = dotted.rpartition(".")
    found = getattr(_ROOTS.get(root), f"{name}_", None)
    return found if callable(found) and not isinstance(found, type) else None


def is_module(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _unknown(dotted: str, span: Span) -> LissomError:
    root, _, name = dotted.rpartition(".")
    near = did_you_mean(name, (n for n in dir(_ROOTS.get(root)) if not n.startswith("_")))
    return fail(
        "T003",
        f"`{dotted}` is no tensor function, method, operator or layer of torch",
        Label(span),
        note=f"names start with {', '.join(_ROOTS)}, or with one the host program registers",
        help="; ".join((*near, "own functions are given as Vocabulary(..., own={name: function})")),
    )
