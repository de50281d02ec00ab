"""What `lissom test` says of a rule with a hole: `where { ? }`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..grammar.diagnostics import Diagnostic, Label, Span
from ..rewrite.proving.guards.propose import OPEN, Proposal, Rejected


def lines(found: Proposal) -> Iterator[str]:
    """The proposal for people, the clause to be pasted first."""
    yield f"{found.rule}  {OPEN}: {_headline(found)}"
    if found.guard:
        yield (
            f"  keeps {found.kept} of {found.agreeing} sites where both sides agree, excludes all "
            f"{found.differing} where they differ"
        )
    if found.guard is not None:
        yield f"  the rule with it: {_proof(found)}"
    if found.wider:
        yield f"  `{found.wider}` keeps {found.wider_kept}"
    yield from (f"  not `{item.guard}`: {_against(found, item)}" for item in found.rejected)
    yield from (f"  {site}" for site in found.sites)
    if found.failure:
        yield f"  the best that was found still fails: {found.failure}"
    for line in found.nameless:
        yield f"  no condition can speak of the settings in `{line}`: give it a name, `as n`"


def _headline(found: Proposal) -> str:
    if found.guard:
        return found.clause
    if found.guard == "":
        return f"no guard is needed: both sides agree at all {found.agreeing} sites; delete the `?`"
    if not found.agreeing and not found.differing:
        return "no site was found at which the rule could be tried"
    if not found.agreeing:
        return f"no guard can help: both sides differ at all {found.differing} sites, such as"
    return (
        f"no conditions of the set tell {found.agreeing} sites where both sides agree from "
        f"{found.differing} where they differ, such as the last two here"
    )


def _proof(found: Proposal) -> str:
    reasons = "; ".join(found.weak)
    return f"{found.verdict} ({reasons})" if reasons else found.verdict


def _against(found: Proposal, item: Rejected) -> str:
    if item.excluded < found.differing:
        return f"excludes {item.excluded} of {found.differing} only; {item.site}"
    return f"keeps {item.kept} of {found.agreeing} only; {item.site}"


def diagnostic(found: Proposal, hole: Span) -> Diagnostic:
    """The error that a rule with a hole is, with what to write there."""
    message = f"a guard of `{found.rule}` is left open"
    helps = (f"write `{found.guard}`",) if found.guard else ()
    if found.guard == "":
        helps = ("delete it: both sides agree without a guard",)
    notes = () if found.guard is not None else (_headline(replace(found, sites=())),)
    return Diagnostic("V004", message, (Label(hole, "when?"),), notes, helps)
