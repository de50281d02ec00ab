"""Frozen records: what `dataclass(frozen=True)` gives, without writing code for each class."""

from __future__ import annotations

from dataclasses import MISSING, Field, FrozenInstanceError, field
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, dataclass_transform

PLACES = ("span", "depth")
"""Fields that are given by name, and that take no part in equality and in `repr`."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record:
    """A class of this kind is a frozen dataclass of its annotated fields to all who use it.

    There are seventy kinds of nodes, and `dataclass` writes and compiles six methods for each: more
    than half of the time that a start of lissom took.
    """

    content: ClassVar[tuple[str, ...]] = ()
    """The names of the fields, those of `PLACES` left out, in textual order."""

    _names: ClassVar[frozenset[str]] = frozenset()
    _given: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own, held = get_annotations(cls), vars(cls)
        cls.content += tuple(name for name in own if name not in PLACES)
        cls._names |= frozenset(own)
        given = {name: _default(held[name]) for name in own if name in held}
        cls._given = cls._given | {name: value for name, value in given.items() if value is not ...}

    if not TYPE_CHECKING:

        def __init__(self, *values: object, **named: object) -> None:
            held = vars(self)
            held.update(self._given)
            held.update(zip(self.content, values, strict=False))
            held.update(named)
            if held.keys() != self._names or len(values) > len(self.content):
                wrong = sorted(held.keys() ^ self._names) or f"{len(values)} values"
                raise TypeError(f"{type(self).__name__} has the fields {self.content}: {wrong}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(self) is not type(other):
            return NotImplemented
        return self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        parts = zip(self.content, self.values, strict=True)
        return f"{type(self).__qualname__}({', '.join(f'{n}={value!r}' for n, value in parts)})"

    @property
    def values(self) -> tuple[Any, ...]:
        """What the fields of `content` hold."""
        held = vars(self)
        return tuple([held[name] for name in self.content])


RecordT = TypeVar("RecordT", bound=Record)


def replace(record: RecordT, **changes: Any) -> RecordT:
    """The record with other values in some fields."""
    return type(record)(**(vars(record) | changes))


def _default(given: Any) -> Any:
    """The default of a field; `...` where a field specifier names none."""
    if not isinstance(given, Field):
        return given
    return ... if given.default is MISSING else given.default
