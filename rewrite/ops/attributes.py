"""Attribute values as torch callers write them, brought to one form for each declared type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...grammar.checks.dtypes import DTYPES
from ...grammar.diagnostics import Diagnostic, LissomError
from .dims import Evaluate
from .runtime_size import RuntimeSize, mapped, read_by


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """A setting. `dim` is the dimension that is the same number, if the declared default is one."""

    name: str
    type: str
    default: Evaluate
    needs: frozenset[str]
    dim: str | None

    @property
    def is_size(self) -> bool:
        """Whether the default is computed from dimensions alone."""
        return bool(self.needs) and all(name[0].isupper() for name in self.needs)

    @property
    def may_be_none(self) -> bool:
        return not self.needs and self.default({}) is None

    @property
    def width(self) -> int | None:
        """How many numbers an `int2` or `int3` has."""
        return int(self.type[3]) if self.type in ("int2", "int3") else None


class Unreadable(LissomError):
    """A call or setting that does not fit the op (T004); `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(Diagnostic("T004", reason))
        self.reason = reason


def plain_tuples(value: Any) -> Any:
    """Containers of fx and torch as tuples, at every depth."""
    if isinstance(value, (tuple, list)):
        return tuple(plain_tuples(item) for item in value)
    if isinstance(value, slice):
        return slice(plain_tuples(value.start), plain_tuples(value.stop), plain_tuples(value.step))
    return value


def numbers(value: Any) -> Any:
    """A value with what computes sizes replaced by the numbers they had in the example."""
    return mapped(value, lambda v: v.number if isinstance(v, RuntimeSize) else v.meta.get("val"))


def has_node(value: Any) -> bool:
    """Whether a setting is computed when the model runs."""
    return bool(read_by({"": value}))


def read_attr(spec: AttrSpec, value: Any) -> Any:
    """`value` in the form of the declared type; None where that is the default. Raises
    `Unreadable`.
    """
    if value is None and spec.may_be_none:
        return None
    value = plain_tuples(value)
    found = _READ.get(spec.type, _any)(spec, value)
    if found is _NO:
        raise Unreadable(
            f"{spec.name} is {value!r}, the op takes {_SHOWN.get(spec.type, spec.type)}"
        )
    return found


_NO: Any = object()
_SHOWN = {
    "int": "one whole number",
    "int2": "two whole numbers",
    "int3": "three whole numbers",
    "ints": "whole numbers",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
}


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, fx.Node, RuntimeSize)) and not isinstance(value, bool)


def _int(spec: AttrSpec, value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    return value if _is_int(value) else _NO


def _several(spec: AttrSpec, value: Any) -> Any:
    """A tuple of fixed length; an axis may be None where torch keeps its size (adaptive
    pooling).
    """
    width = spec.width or 1
    items = value if isinstance(value, tuple) else (value,)
    items = items * width if len(items) == 1 else items
    fits = len(items) == width and all(item is None or _is_int(item) for item in items)
    return items if fits else _NO


def _ints(spec: AttrSpec, value: Any) -> Any:
    items = value if isinstance(value, tuple) else (value,)
    if spec.dim is not None and len(items) != 1:
        return _NO
    return items if all(map(_is_int, items)) else _NO


def _float(spec: AttrSpec, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number else _NO


def _of(kind: type) -> Callable[[AttrSpec, Any], Any]:
    return lambda spec, value: value if isinstance(value, kind) else _NO


def _any(spec: AttrSpec, value: Any) -> Any:
    return value


_BY_NAME = {name: getattr(torch, name) for name in DTYPES}


def _dtype(spec: AttrSpec, value: Any) -> Any:
    """In a declaration a dtype is written as its name."""
    if isinstance(value, str):
        return _BY_NAME.get(value, _NO)
    return value if isinstance(value, torch.dtype) else _NO


_READ: dict[str, Callable[[AttrSpec, Any], Any]] = {
    "int": _int,
    "int2": _several,
    "int3": _several,
    "ints": _ints,
    "float": _float,
    "bool": _of(bool),
    "str": _of(str),
    "dtype": _dtype,
}


def numeric_padding(padding: str, kernel: tuple[int, ...], attrs: dict[str, Any]) -> Any:
    """`same` or `valid` of a convolution as numbers. Raises `Unreadable` where both ends would
    differ.

    torch pads `dilation * (kernel - 1)` in all for `same`, the odd one at the end.
    """
    if padding == "valid":
        return _as_wide((0,) * len(kernel), attrs["dilation"])
    dilation = attrs["dilation"]
    each = dilation if isinstance(dilation, tuple) else (dilation,)
    total = [d * (k - 1) for d, k in zip(each, kernel, strict=True)]
    if padding != "same" or any(n % 2 for n in total):
        raise Unreadable(f"padding {padding!r} adds {total} in all, which does not split in halves")
    return _as_wide(tuple(n // 2 for n in total), dilation)


def _as_wide(numbers: tuple[int, ...], like: Any) -> Any:
    return numbers if isinstance(like, tuple) else numbers[0]
