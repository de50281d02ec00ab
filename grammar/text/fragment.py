"""Parses an expression that stands alone: in a guard's message or on the command line."""

from __future__ import annotations

from ..tree import tree as t
from .parse import parse


def parse_expression(text: str, name: str = "<expression>") -> t.Expr:
    """The tree of one expression. Raises `LissomError` with E-codes."""
    file = parse(f"test fragment {{ check {text} }}", name)
    (check,) = file.statements[0].cases  # type: ignore[union-attr]
    return check.condition  # type: ignore[union-attr]
