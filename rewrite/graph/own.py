"""The layers and functions of a user's own op declarations: one node each in a captured graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

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
    """(module, name) of each global by which code of the model calls a declared function."""
    functions = {id(own) for own in _own() if not isinstance(own, type)}
    for module in _modules(root) if functions else ():
        yield from ((module, name) for name, held in vars(module).items() if id(held) in functions)


def _modules(root: nn.Module) -> Iterable[Any]:
    """The Python modules that hold the code of the model and of the functions themselves."""
    kinds = {kind for module in root.modules() for kind in type(module).__mro__}
    names = {kind.__module__ for kind in kinds} | {f.__module__ for f in _functions()}
    loaded = (sys.modules.get(name) for name in sorted(names) if not name.startswith("torch"))
    return [module for module in loaded if module is not None]


def _functions() -> list[Callable[..., Any]]:
    own = (own for own in _own() if not isinstance(own, type))
    return [f for f in own if isinstance(getattr(f, "__module__", None), str)]
