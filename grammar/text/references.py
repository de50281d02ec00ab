"""The names inside an expression and inside the message of a guard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from ..diagnostics import LissomError, Span
from ..tree import tree as t
from .parse import parse

FREE = frozenset(("drop",))
"""Functions whose arguments are names of the host: `drop(top1)`."""

PREFIX = "test t { check "
"""What stands before the text of a hole when it is parsed."""

_HOLE = re.compile(r"\{([^{}]*)\}")


def references(expr: t.Node) -> Iterator[tuple[str, Span, bool]]:
    """Each free name of an expression, where it stands, and whether it is called."""
    stack: list[tuple[t.Node, frozenset[str]]] = [(expr, frozenset())]
    while stack:
        node, hidden = stack.pop()
        if isinstance(node, t.Name) and node.text not in hidden:
            yield node.text, node.span, False
        elif isinstance(node, t.Quantifier):
            stack.append((node.body, hidden | {node.variable.text}))
            stack.append((node.domain, hidden))
        elif isinstance(node, t.Call) and isinstance(node.function, t.Name):
            yield node.function.text, node.function.span, True
            stack += [(n, hidden) for n in _arguments(node)]
        else:
            stack += [(n, hidden) for n in reversed(t.children(node)) if not isinstance(n, t.Word)]


def _arguments(call: t.Call) -> list[t.Node]:
    assert isinstance(call.function, t.Name)
    free = call.function.text in FREE
    return [] if free else list(reversed((*call.args, *call.keywords)))


def message_holes(guard: t.Guard) -> Iterator[tuple[str, Span]]:
    """The `{...}` parts of a guard's message: their text and their place."""
    if guard.reason is None or "{" not in guard.reason:
        return
    text, start = guard.span.text, guard.condition.span.end
    for found in _HOLE.finditer(text, start - guard.span.start):
        place = guard.span.start + found.start()
        yield found[1], Span(guard.span.source, place, place + len(found[0]))


@lru_cache(maxsize=4096)
def hole_expression(text: str) -> t.Expr | None:
    """The expression in a hole, or None if it is not one."""
    try:
        test = parse(f"{PREFIX}{text} }}").statements[0]
    except LissomError:
        return None
    case = test.cases[0] if isinstance(test, t.Test) and len(test.cases) == 1 else None
    return case.condition if isinstance(case, t.Check) else None
