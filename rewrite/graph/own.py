"""The layers and functions of a user's own op declarations: one node each in a captured graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any

from torch import fx, nn

from ..ops.vocabulary import Vocabulary

_DECLARED: ContextVar[Vocabulary | None] = ContextVar("declared", default=None)


@contextmanager
def declared(vocabulary: Vocabulary) -> Iterator[None]:
    """While a model is captured, what the host program adds to the vocabulary is kept whole."""
    token = _DECLARED.set(vocabulary)
    try:
        yield
    finally:
        _DECLARED.reset(token)


def known_ops() -> Vocabulary:
    """What is declared while a model is captured; the library where nobody said."""
    return _DECLARED.get() or Vocabulary.library()


def _own() -> Iterable[Any]:
    return known_ops().own.values()


def is_own(module: nn.Module) -> bool:
    """Whether the class of the module is one of a declaration."""
    return any(type(module) is own for own in _own())


def named_functions(root: nn.Module) -> Iterator[tuple[Any, str]]:
    """(owner, name) of each global by which code of the model calls a declared function."""
    functions = [own for own in _own() if not isinstance(own, type)]
    known = set(map(id, functions))
    for names in _namespaces(root, functions) if functions else ():
        owner = _Globals(names)
        yield from ((owner, name) for name, held in list(names.items()) if id(held) in known)


class _Globals:
    """Global names as attributes: a module that was run from a file need not be one that Python
    knows.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self.__dict__ = names


def _namespaces(root: nn.Module, functions: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """The global names of the code of the model, and of the functions themselves."""
    kinds = {kind for module in root.modules() for kind in type(module).__mro__}
    code = [held for kind in kinds if not _is_of_torch(kind) for held in vars(kind).values()]
    code += [type(m).forward for m in root.modules() if isinstance(m, fx.GraphModule)]
    found = {id(f.__globals__): f.__globals__ for f in (*code, *functions) if _is_function(f)}
    return found.values()


def _is_of_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _is_function(held: Any) -> bool:
    return isinstance(held, FunctionType) and not str(held.__module__).startswith("torch.")
