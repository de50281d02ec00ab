"""Containers that a model returns, and the classes that stand in for them in an artifact.

Reading an artifact imports nothing that it names. So OrderedDict, PackedSequence and torch's own
result types come back as themselves, a named tuple as one of the same name and fields, and any
other class (a dataclass, a dict or tuple with methods) as a plain class made here: the same name
and fields, no code of its own.

A stored container is one line: `ordered_dict`, `packed_sequence`, `torch.return_types.max`,
`namedtuple Point(x, y)`, `dataclass Out(logits, aux)`, `record ModelOutput(loss, logits)`, `list`,
`tuple`, `size`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from .values import is_name

_LINE = re.compile(r"(namedtuple|dataclass|record) ([A-Za-z_]\w*)\(([\w, ]*)\)", re.ASCII)
_MOST_FIELDS = 1024
_PLAIN: dict[str, type] = {"list": list, "tuple": tuple, "size": torch.Size}
_PLAIN |= {"ordered_dict": OrderedDict, "packed_sequence": PackedSequence}


class FieldRecord(OrderedDict[str, Any]):
    """Fields by key, by attribute and by position. A field that is None is an attribute, but no
    key and no position.
    """

    _names: tuple[str, ...] = ()

    def __init__(self, pairs: Iterable[tuple[str, Any]] = (), **fields: Any) -> None:
        given = {**dict(pairs), **fields}
        ordered = {name: given[name] for name in (*self._names, *given) if name in given}
        super().__init__((name, value) for name, value in ordered.items() if value is not None)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in type(self)._names:
            return None
        raise AttributeError(f"`{type(self).__name__}` has no field `{name}`")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in order."""
        return tuple(self.values())


def container_line(kind: Any) -> str | None:
    """How a class of containers is stored; None for anything else."""
    if not isinstance(kind, type):
        return None
    plain = next((line for line, known in _PLAIN.items() if known is kind), None)
    if plain is not None:
        return plain
    if kind.__module__ == "torch.return_types":
        return f"torch.return_types.{kind.__name__}"
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _line("namedtuple", kind, kind._fields)
    if issubclass(kind, dict):
        return _line("record", kind, _names_of(kind))
    if dataclasses.is_dataclass(kind):
        return _line("dataclass", kind, _names_of(kind))
    return next((base.__name__ for base in (list, tuple) if issubclass(kind, base)), None)


def _names_of(kind: type) -> tuple[str, ...]:
    if issubclass(kind, FieldRecord):
        return kind._names
    return tuple(f.name for f in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()


def _line(form: str, kind: type, fields: Iterable[str]) -> str | None:
    fields = tuple(fields)
    fits = is_name(kind.__name__) and all(is_name(f) for f in fields) and len(fields) < _MOST_FIELDS
    return f"{form} {kind.__name__}({', '.join(fields)})" if fits else None


@cache
def container_of(line: str) -> Callable[..., Any] | None:
    """The class of a stored line, one and the same each time; None for what is no such line."""
    if line in _PLAIN:
        return _PLAIN[line]
    space, _, name = line.rpartition(".")
    if space == "torch.return_types":
        found = vars(torch.return_types).get(name)
        return found if isinstance(found, type) and issubclass(found, tuple) else None
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    form, name, listed = match.groups()
    fields = tuple(listed.split(", ")) if listed else ()
    usable = len(set(fields)) == len(fields) < _MOST_FIELDS and all(map(is_name, fields))
    return _made(form, name, fields) if usable and is_name(name) else None


def _made(form: str, name: str, fields: tuple[str, ...]) -> type | None:
    try:
        if form == "namedtuple":
            return namedtuple(name, fields, module=__name__)
        if form == "record":
            return type(name, (FieldRecord,), {"_names": fields, "__module__": __name__})
        # Comparing two of them would ask whether tensors are true.
        return dataclasses.make_dataclass(
            name,
            [(field, Any, dataclasses.field(default=None)) for field in fields],
            eq=False,
            namespace={"__module__": __name__},
        )
    except (TypeError, ValueError):
        return None
