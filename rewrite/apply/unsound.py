"""What the author of a rule is told whose promise does not hold at a site."""

from __future__ import annotations

from collections.abc import Mapping

from ...grammar.diagnostics import Diagnostic, Label, LissomError
from ..journal import Verdict
from ..match.site import Site
from ..ops.text import call_text


def unsound(site: Site, verdict: Verdict, code: str) -> LissomError:
    """The rule promised equality and broke it: the author must know at once, with the place and the
    numbers.
    """
    numbers = (
        ""
        if verdict.worst is None
        else f"largest difference {verdict.worst:.3g}, allowed {verdict.tolerance:.3g}; "
    )
    matched = "; ".join(call_text(call) for call in site.calls)
    labels = (
        Label(site.rule.source.name.span, "this rule"),
        Label(
            None, where=f"{site.name} ({site.calls[0].node.meta.get('source') or 'no source line'})"
        ),
    )
    measured = f"{verdict.claim}: {numbers}{verdict.detail}"
    message, help_ = _UNSOUND.get(code) or _UNSOUND["V101", site.rule.kind == "approx"]
    message = f"`{site.rule.name}` {message}"
    notes = measured, f"matched: {matched}"
    return LissomError(Diagnostic(code, message, labels, notes, (help_,)))


_UNSOUND: Mapping[object, tuple[str, str]] = {
    ("V101", True): (
        "does not compute the same",
        "the rewrite half of a rule must be exact; put what is approximate into `perturb`",
    ),
    ("V101", False): (
        "does not compute the same",
        "`lissom test FILE` draws such models and names the guard that is missing",
    ),
    "F103": (
        "stores another weight than `train` says",
        "what `train` computes of the stored weight must be the stored weight",
    ),
    "V107": (
        "computes the same at the sizes of the example only",
        "a size taken from a value is a number for good: write `runtime_size(x, axis)`, or -1",
    ),
}
"""What a broken promise is called, and what to do about it."""
