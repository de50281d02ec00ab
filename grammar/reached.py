"""All that hangs together with something, along a relation that is asked for as it is followed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def reached(starts: Iterable[T], onward: Callable[[T], Iterable[T]]) -> list[T]:
    """`starts`, and what `onward` leads to from there, each once: the last that is given is
    followed first. Things are told apart by identity.
    """
    found: dict[int, T] = {}
    waiting = list(starts)
    while waiting:
        at = waiting.pop()
        if id(at) not in found:
            found[id(at)] = at
            waiting += onward(at)
    return list(found.values())
