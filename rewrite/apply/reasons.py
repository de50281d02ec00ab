"""Why a site is left whose match and guards hold: what is found out while it is prepared."""

from __future__ import annotations

from torch import fx

from ...grammar.diagnostics import Label, Span, fail
from ...grammar.tree import tree as t
from ..journal import Verdict, VerdictKind
from ..match.site import Site
from ..measure.twins import FAULTY, KernelFault, faults_text
from ..rules.binding import PLAN, NoMatch
from .planned import Plan
from .unsound import unsound


def loses_what_it_reads(site: Site, plan: Plan) -> NoMatch | None:
    """New ops may read what the match reads, what it keeps and each other; nothing that goes."""
    lost = next((node for node in plan.reads if node in site.gone), None)
    if lost is None:
        return None
    names = [name for name, value in site.bindings.values.items() if value is lost]
    given = next((name for name in names if name not in site.rule.pattern.produced), None)
    if given is not None:  # one value has two names here: the rule is right, the site is none
        text = f"`{given}` is a value that the rewrite removes"
        return NoMatch(PLAN, 0, lambda: text, rule_span(site), site.calls[0].node, "N005")
    name = next(iter(names), lost.name)
    hint = f"mark its line `shared {name} = ...`: then it stays"
    message = f"the rewrite reads `{name}`, which it removes"
    raise fail("N005", message, Label(rule_span(site)), help=hint)


def moves_what_stays(site: Site) -> NoMatch | None:
    """`x := ...` of `perturb` gives the matched ops another value than the model computes: where x
    is a constant of the model, it computes none; where one of them gives x to another, x is not
    read from outside.
    """
    inner = {*site.nodes} - {*site.outputs.values()}
    moves = [m for p in site.rule.source.all(t.Perturb) for m in p.moves]
    for move in (m for m in moves if isinstance(m, t.Assign) and len(m.path.parts) == 1):
        node, name = site.scope.names.get(str(move.path)), str(move.path)
        if isinstance(node, fx.Node) and node.op == "get_attr":
            text = f"`{name}` is a constant of the model, no value that it computes"
            return NoMatch(PLAN, 0, lambda text=text: text, move.span, node, "R015")
        if node in inner:
            text = f"`{name}` is what one of the matched ops gives to another"
            return NoMatch(PLAN, 0, lambda text=text: text, move.span, node, "R015")
    return None


def inexact(site: Site, wrong: Verdict) -> NoMatch:
    """Where the site may stay, why; raises V101 or V107 where the rule is to blame."""
    if wrong.kind is VerdictKind.OWN:
        return _too_coarse(site, wrong)
    if wrong.kind is VerdictKind.TRAINED:
        raise unsound(site, wrong, "F103")
    if wrong.kind is not VerdictKind.SIZES:
        raise unsound(site, wrong, "V101")
    if site.rule.source.all(t.Where):
        return _at_these_sizes_only(site, wrong)
    raise unsound(site, wrong, "V107")


def _too_coarse(site: Site, verdict: Verdict) -> NoMatch:
    """Right in float64 but not in the model's precision: an overflow, say. The site stays."""
    numbers = f"largest difference {verdict.worst:.3g}, allowed {verdict.tolerance:.3g}"
    text = f"equal in float64, not in the model's dtype: {numbers}"
    return NoMatch(
        PLAN, 0, lambda: f"{text}; {verdict.detail}", rule_span(site), site.calls[0].node, "V105"
    )


def _at_these_sizes_only(site: Site, verdict: Verdict) -> NoMatch:
    """A guard may hold at the sizes of the example alone, `H == 1` say. The site stays."""
    text = f"computes the same at the sizes of the example only: {verdict.detail}"
    return NoMatch(PLAN, 0, lambda: text, rule_span(site), site.calls[0].node, "V107")


def faulty_kernels(site: Site, faults: tuple[KernelFault, ...]) -> NoMatch:
    """Both sides would agree if this processor computed what its ops mean. The site stays."""
    node = site.calls[0].node
    return NoMatch(
        PLAN, 0, lambda: faults_text(faults), rule_span(site), node, FAULTY, faults=faults
    )


def rule_span(site: Site) -> Span:
    return site.rule.source.name.span


def broken_claim(site: Site, verdict: Verdict) -> NoMatch:
    span = rule_span(site) if verdict.clause is None else site.rule.claims[verdict.clause].span
    text = f"`{verdict.claim}` does not hold: {verdict.detail}"
    return NoMatch(PLAN, 0, lambda: text, span, site.calls[0].node, "B001")
