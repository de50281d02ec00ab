"""What the operators of the language do to Python's numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "//": operator.floordiv, "mod": operator.mod, "^": operator.pow,
}  # fmt: skip
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

OPS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "@": "matmul"}
"""The ops that they write between values of a graph."""


def pairs(left: Any, right: Any) -> Iterator[tuple[Any, Any]]:
    """The elements of two tuples, one by one; what is no tuple counts for each. Raises ValueError
    where one has more.
    """
    size = len(left) if isinstance(left, tuple) else len(right)
    both = (side if isinstance(side, tuple) else (side,) * size for side in (left, right))
    return zip(*both, strict=True)
