"""Expressions with other names, and a normal text of a rule for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tree as t


def renamed(node: Any, names: Mapping[str, t.Expr]) -> Any:
    """The expression with every free name in `names` replaced."""
    if isinstance(node, t.Name):
        return names.get(node.text, node)
    if isinstance(node, tuple):
        return tuple(renamed(item, names) for item in node)
    if not isinstance(node, t.Node) or isinstance(node, t.Word):
        return node
    changes = {
        name: renamed(getattr(node, name), names)
        for name in node.content
        if isinstance(getattr(node, name), (t.Node, tuple))
    }
    if isinstance(node, t.Call) and isinstance(node.function, t.Name):
        changes["function"] = node.function
    return t.replace(node, **changes) if changes else node


def dump(node: Any, names: dict[str, str]) -> str:
    """A text that is equal for equal trees; names are numbered in the order they are met."""
    if isinstance(node, (t.Name, t.Word)):
        return names.setdefault(node.text, f"${len(names)}")
    if isinstance(node, tuple):
        return "(" + " ".join(dump(item, names) for item in node) + ")"
    if isinstance(node, t.OpSet):
        return "|".join(sorted(word.text for word in node.names))
    if isinstance(node, t.Keyword):
        return f"{node.name.text}={dump(node.value, names)}"
    if isinstance(node, t.Call) and isinstance(node.function, t.Name):
        called = names.get(node.function.text, node.function.text)
        keywords = tuple(sorted(node.keywords, key=lambda k: k.name.text))
        return f"call {called}{dump(node.args, names)}{dump(keywords, names)}"
    if isinstance(node, t.Path):
        root, *rest = node.parts
        return ".".join([dump(root, names), *(word.text for word in rest)])
    if isinstance(node, t.Node):
        parts = [dump(getattr(node, name), names) for name in node.content]
        return f"{type(node).__name__}[{' '.join(parts)}]"
    return repr(node)
