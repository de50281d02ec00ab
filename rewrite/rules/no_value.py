"""The error of an expression at one site: the rule may have a value at others."""

from __future__ import annotations

from ...grammar.diagnostics import Diagnostic, Label, LissomError, Span


class NoValue(LissomError):
    """An expression has no value here."""


def uncomputed(span: Span, why: str) -> Diagnostic:
    return Diagnostic("R001", f"`{span.text}` cannot be computed", (Label(span, why),))
