"""Numbers that remember how they were computed.

A size read from a tensor during a trace is an `int` in every respect (so model code, `isinstance`
and torch's own argument parsers take it as one), yet arithmetic on it, the functions of `math`
included, is written down and replayed for other sizes. Wherever Python forces a definite answer (a
comparison, `int()`, a dictionary key, a loop), the answer is kept as a *guard*.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import fx

TEXT = "written as text"
"""Why a number was made definite that most often only goes into a message."""


class Book(Protocol):
    """Where traced numbers write themselves down."""

    open: bool

    def compute(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> fx.Node: ...

    def guard(self, why: str, node: fx.Node, value: object) -> None: ...


class _Traced:
    """Shared half of traced numbers. `_make` builds the graph node when something first needs
    it.
    """

    _book: Book
    _make: Callable[[], fx.Node]
    _node: fx.Node | None

    def node(self) -> fx.Node:
        if self._node is None:
            self._node = self._make()
        return self._node


class TracedInt(_Traced, int):
    """An int with a graph node."""

    def __hash__(self) -> int:
        _settle(self, "used as a key", int.__int__(self))
        return int.__hash__(self)

    def __int__(self) -> int:
        return _settle(self, "read by int()", int.__int__(self), int)

    def __float__(self) -> float:
        return _settle(self, "read by float()", int.__float__(self), float)

    def __bool__(self) -> bool:
        return _settle(self, "branch", int.__bool__(self), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int.__int__(self),)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedInt:
        return self


class TracedFloat(_Traced, float):
    """A float with a graph node."""

    def __hash__(self) -> int:
        _settle(self, "used as a key", float.__float__(self))
        return float.__hash__(self)

    def __int__(self) -> int:
        return _settle(self, "read by int()", float.__int__(self), int)

    def __bool__(self) -> bool:
        return _settle(self, "branch", float.__bool__(self), bool)

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float.__float__(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedFloat:
        return self


def traced(value: Any, book: Book, make: Callable[[], fx.Node]) -> Any:
    """`value` as a traced number; a bool, and anything that is no number, is returned as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number: Any = TracedInt(value) if isinstance(value, int) else TracedFloat(value)
    number._book, number._make, number._node = book, make, None
    return number


def untraced(value: Any) -> Any:
    """The number alone."""
    if type(value) is TracedInt:
        return int.__int__(value)
    return float.__float__(value) if type(value) is TracedFloat else value


def is_traced(value: object) -> bool:
    return type(value) is TracedInt or type(value) is TracedFloat


def _settle(number: Any, why: str, value: Any, via: Callable[..., Any] | None = None) -> Any:
    book: Book = number._book
    if book.open:
        node = number.node() if via is None else book.compute(via, (number,))
        book.guard(why, node, value)
    return value


def definite(value: Any, why: str) -> Any:
    """The plain number of a traced one, which becomes a guard; anything else as it is."""
    return _settle(value, why, untraced(value)) if is_traced(value) else value


def _apply(function: Callable[..., Any], *operands: Any) -> Any:
    value = function(*(untraced(operand) for operand in operands))
    book = next(o._book for o in operands if is_traced(o))
    if not book.open:
        return value
    if isinstance(value, bool):
        book.guard("branch", book.compute(function, operands), value)
        return value
    return traced(value, book, lambda: book.compute(function, operands))


def _binary(function: Callable[..., Any], swap: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        # Tensors, lists and strings keep their own arithmetic with a plain int.
        if not isinstance(other, (int, float)):
            if isinstance(other, (list, tuple, str)):
                definite(self, "repeats a list")
            return NotImplemented
        return _apply(function, other, self) if swap else _apply(function, self, other)

    return method


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *rest: _apply(function, self, *rest)


_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_BITS = ("and_", "or_", "xor", "lshift", "rshift")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY = {"neg": operator.neg, "pos": operator.pos, "abs": operator.abs}
_UNARY |= {"ceil": math.ceil, "floor": math.floor, "trunc": math.trunc, "round": round}


def _install(kind: type, names: tuple[str, ...]) -> None:
    for name in names:
        function, stem = getattr(operator, name), name.strip("_")
        setattr(kind, f"__{stem}__", _binary(function, swap=False))
        if name not in _COMPARE:
            setattr(kind, f"__r{stem}__", _binary(function, swap=True))
    for name, function in _UNARY.items():
        setattr(kind, f"__{name}__", _unary(function))


def _install_readers(kind: type, base: type) -> None:
    """What Python computes of a number by itself makes its value definite."""

    def reader(name: str, why: str) -> Callable[..., Any]:
        eager = getattr(base, name)
        return lambda self, *rest: eager(definite(self, why), *rest)

    for name in ("__str__", "__repr__", "__format__"):
        setattr(kind, name, reader(name, TEXT))
    for name in (n for n in dir(base) if not n.startswith("_") and callable(getattr(base, n))):
        setattr(kind, name, reader(name, f"read by {name}()"))


# -- numpy ---------------------------------------------------------------------------------------

# Those that round correctly, so that Python's own arithmetic gives the same bits.
_UFUNCS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
}


def _ufunc(self: Any, ufunc: Any, method: str, *operands: Any, **options: Any) -> Any:
    function = _UFUNCS.get(ufunc.__name__)
    numbers = all(isinstance(o, (int, float)) or hasattr(o, "item") for o in operands)
    if function is None or method != "__call__" or options or not numbers or _has_axes(operands):
        return getattr(ufunc, method)(*(definite(o, "read by numpy") for o in operands), **options)
    return _apply(function, *(o if is_traced(o) or _builtin(o) else o.item() for o in operands))


def _builtin(value: object) -> bool:
    return type(value) in (int, float, bool)


def _has_axes(operands: Iterable[Any]) -> bool:
    return any(getattr(operand, "ndim", 0) for operand in operands)


def _array(self: Any, dtype: Any = None, copy: bool | None = None) -> Any:
    import numpy  # only a model that uses it comes here

    return numpy.asarray(definite(self, "read by numpy"), dtype)


for _kind, _names in ((TracedInt, _ARITHMETIC + _BITS), (TracedFloat, _ARITHMETIC)):
    _install(_kind, _names + _COMPARE)
    _install_readers(_kind, _kind.__base__ or object)
    setattr(_kind, "__array_ufunc__", _ufunc)  # noqa: B010
    setattr(_kind, "__array__", _array)  # noqa: B010


def math_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions of `math`, each of which keeps a traced number traced."""
    for name, function in list(vars(math).items()):
        if callable(function) and not name.startswith("_"):
            yield name, _kept(name, function)


def _kept(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if name == "prod" and not options:
            return functools.reduce(operator.mul, args[0], 1)
        if options or not any(map(is_traced, args)):
            return function(*args, **options)
        return _apply(function, *args)

    return call


def _choice(function: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*args: Any, **options: Any) -> Any:
        items = tuple(args[0]) if len(args) == 1 else args
        if options or not items or not any(is_traced(item) for item in items):
            return function(items, **options) if len(args) == 1 else function(*args, **options)
        return _apply(function, *items)

    return choose


@contextmanager
def traced_choices() -> Iterator[None]:
    """Let `max` and `min` of traced numbers stay a computation instead of becoming a branch."""
    saved = builtins.max, builtins.min
    builtins.max, builtins.min = _choice(saved[0]), _choice(saved[1])  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.max, builtins.min = saved
