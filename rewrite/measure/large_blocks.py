"""Large blocks of memory go back to the system when they are free, while a model is rewritten.

The allocator of Linux (glibc) maps large blocks one by one at first, but stops that as soon as one
is freed: up to 32 MB, the next ones come from a heap that only shrinks at its end. Weights in
float64, their decompositions and activations are such blocks, of ever other sizes, and leave once
or twice the model behind as holes.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

LARGE = 1 << 20
"""Bytes of a block that is mapped by itself while a model is compiled."""

USUAL = 1 << 25
"""Where the allocator itself ends up in a process that frees blocks of this size or larger."""

_THRESHOLD, _TRIM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h

OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""Who sets one of these has chosen for the process, and it stays so."""


LONG = 0.05
"""Seconds of a run from which on it pays to look for free memory, which takes 1 to 10 ms."""


@contextmanager
def large_blocks_mapped() -> Iterator[None]:
    """Maps large blocks one by one; then as the allocator does. Nothing under another one."""
    glibc = None if any(os.environ.get(name) for name in OWN) else _glibc()
    if glibc is None:
        yield
        return
    setting, trim = glibc
    setting(_THRESHOLD, LARGE)
    _mapped.append(True)
    try:
        yield
    finally:
        _mapped.pop()
        _as_usual(setting)
        trim(0)


@contextmanager
def large_blocks_reused() -> Iterator[None]:
    """Not so while this lasts: where blocks of much the same sizes come and go, one that is mapped
    anew costs more than what is computed in it.
    """
    glibc = _glibc()
    if glibc is None or not _mapped:
        yield
        return
    setting, trim = glibc
    _as_usual(setting)
    try:
        yield
    finally:
        setting(_THRESHOLD, LARGE)
        trim(0)


_mapped: list[bool] = []
"""One for each `large_blocks_mapped` that lasts."""


def _as_usual(setting: Callable[[int, int], int]) -> None:
    setting(_THRESHOLD, USUAL)
    setting(_TRIM, 2 * USUAL)


@contextmanager
def giving_back() -> Iterator[None]:
    """Gives back what is free behind a run that took long: much cheaper than mapping, where a model
    only runs.
    """
    begun = time.monotonic()
    try:
        yield
    finally:
        if time.monotonic() - begun >= LONG:
            give_back()


def give_back() -> None:
    """Also what is free between smaller blocks; takes some milliseconds."""
    glibc = _glibc()
    if glibc is not None:
        glibc[1](0)


@cache
def _glibc() -> tuple[Callable[[int, int], int], Callable[[int], int]] | None:
    try:
        library = ctypes.CDLL(None)
        return library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
