"""Python's garbage collector while a graph is rewritten."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG = 50_000

LONG = 2.0
"""Seconds of rewriting behind which all cycles are collected, which takes a tenth of that."""


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Collects cycles once in 50,000 new objects instead of 700.

    A rewrite leaves long-living nodes and short-living values, hardly any cycles: walking the young
    objects every 700 of them costs a fifth of the whole time and finds nothing. Collection is not
    switched off, so that what cycles there are (erased nodes, tracebacks that hold tensors) still
    goes. Every copy of a graph is a cycle, which holds weights: behind long work, on large models,
    those that nothing reads any more go at once.
    """
    before, begun = gc.get_threshold(), time.monotonic()
    gc.set_threshold(max(_YOUNG, before[0]) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if before[0] and time.monotonic() - begun >= LONG:
            gc.collect()
