"""One application of one rule: find, examine, plan, verify, commit - or a reason why not. Every
step before the commit works on values, so there is nothing to undo.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import fx

from ...grammar.diagnostics import Label, LissomError
from ..graph.emit import Emitted
from ..graph.places import name_of
from ..journal import Applied, Costs, Refused, Verdict, VerdictKind
from ..match.match import Search, rarest
from ..match.site import Site, examine, examine_cheaply, owners_miss
from ..measure.latency import Saving
from ..rules.binding import GUARDS, PLAN, STRUCTURE, Bindings, NoMatch, left_for
from ..rules.pattern import PatternOp
from ..rules.rule import CompiledRule
from ..rules.scope import shown
from ..rules.state import State
from ..torch_internals import is_erased, order_of
from .aliasing import unseen
from .bounds import weight_bounds
from .claims import after, before, check_claims
from .commit import commit, emit_plan, insertion_point, origins
from .exactness import check_exact, own_faults
from .let_go import forget, let_go_of_parts
from .plan import construct
from .planned import Plan, Planned
from .reasons import (
    broken_claim,
    faulty_kernels,
    inexact,
    loses_what_it_reads,
    moves_what_stays,
    rule_span,
)
from .site_time import site_time
from .surroundings import Surroundings, surroundings
from .unsound import unsound
from .verify import check_shapes

T = TypeVar("T")


@dataclass(slots=True)
class VerifiedRewrite:
    """A site with its plan, verified and waiting to be committed. equal, claims, bounds: the
    verdicts on the rewrite, on what the rule promises, and on the weights. read: the surroundings
    that it was prepared in. when: how many changes of the graph there had been when its promises
    were measured. held: its weights were not let go.
    """

    site: Site
    plan: Plan
    emitted: dict[Planned, Emitted]
    point: fx.Node
    before: Costs
    after: Costs
    equal: tuple[Verdict, ...]
    claims: tuple[Verdict, ...]
    bounds: tuple[Verdict, ...]
    read: Surroundings
    when: int
    held: bool = True
    timed: Saving | None = None

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return (*self.equal, *self.claims, *self.bounds)

    @property
    def saving(self) -> int:
        """Parameters saved: what `order by saving` ranks by."""
        return self.before.params - self.after.params

    @property
    def sensitivity(self) -> float:
        """The largest error that a claim of the rule measured at this site."""
        errors = (v.worst or 0.0 for v in self.verdicts if v.kind is VerdictKind.ERROR)
        return max(errors, default=0.0)


def anchor(state: State, rule: CompiledRule) -> PatternOp:
    """The pattern op with the fewest candidates in this graph."""
    return rarest(rule.pattern, state.counts(rule.pattern))


def candidates(state: State, rule: CompiledRule) -> list[fx.Node]:
    """The nodes that may anchor a match, in graph order."""
    op = anchor(state, rule)
    if op.ops is None:
        return [node for node in state.module.graph.nodes if state.view.call(node) is not None]
    if len(op.ops) == 1:
        return list(state.view.calls_of(next(iter(op.ops))))
    found = {node for name in op.ops for node in state.view.calls_of(name)}
    return sorted(found, key=order_of)


def find(
    state: State, rule: CompiledRule, node: fx.Node, start: PatternOp | None = None
) -> Site | NoMatch:
    """The first site of `rule` anchored at `node`, or the nearest miss."""
    search = Search(rule.pattern, state.view)
    best: NoMatch | None = None
    for bindings in search.at(start or anchor(state, rule), node, Bindings(names=dict(rule.args))):
        found = _fenced(rule, bindings) or examine(state, rule, bindings)
        if isinstance(found, Site):
            return found
        best = found if best is None or found.rank > best.rank else best
    best = best or search.miss
    return best or NoMatch(0, 0, lambda: "no match", rule.source.name.span, node)


def may_apply(state: State, rule: CompiledRule, node: fx.Node, start: PatternOp) -> bool:
    """Whether the rule matches at `node`, and the guards hold that come before its first `let`: as
    much as can be said without computing anything.
    """
    search = Search(rule.pattern, state.view)
    found = search.at(start, node, Bindings(names=dict(rule.args)))
    try:
        return any(not _fenced(rule, b) and examine_cheaply(state, rule, b) is None for b in found)
    except LissomError:  # told when the site's turn comes
        return True


def _fenced(rule: CompiledRule, bindings: Bindings) -> NoMatch | None:
    """A rule does not match what it made itself, unless it says why that ends."""
    if rule.recursive:
        return None
    own = next(
        (c.node for c in bindings.calls() if rule.name in c.node.meta.get("rules", ())), None
    )
    if own is None:
        return None
    text = f"{own.name} was made by this rule; `recursive decreasing ...` would allow it"
    return NoMatch(GUARDS, 0, lambda: text, rule.source.name.span, own, "L001")


def prepare(state: State, site: Site) -> VerifiedRewrite | NoMatch:
    """Plans and verifies. A budget that does not hold is a miss; a rewrite that is not equal is an
    error of the rule.
    """
    barred = state.barred.get((site.rule.label, site.name))
    if barred is not None:
        return faulty_kernels(site, barred)
    stays = moves_what_stays(site)
    if stays is not None:
        return stays
    plan = construct(state, site)
    let_go_of_parts(site, plan)
    unfit = loses_what_it_reads(site, plan) or owners_miss(state, site) or unseen(state, site, plan)
    if unfit is not None:
        return unfit
    shapes = check_shapes(site, plan)
    if not shapes.holds:
        raise unsound(site, shapes, "S001")
    point = insertion_point(site, plan, plan.reads)
    if point is None:
        text = "a result is read before everything it needs exists"
        return NoMatch(PLAN, 0, lambda: text, rule_span(site), site.calls[0].node, "R005")
    emitted = emit_plan(state, site, plan)
    exact = check_exact(state, site, plan, emitted) if state.verify else ()
    site.scope.doubles.clear()  # where claims need one of them, it is made again
    wrong = next((verdict for verdict in exact if not verdict.holds), None)
    owned = wrong is not None and wrong.kind in (VerdictKind.OWN, VerdictKind.TYPES)
    faults = own_faults(state, site, plan, emitted) if owned else ()
    if faults:
        return faulty_kernels(site, faults)
    if wrong is not None:
        return inexact(site, wrong)
    claims = _claims(state, site, plan)
    if isinstance(claims, NoMatch):
        return claims
    bounds = weight_bounds(site, plan) if state.verify else ()
    costs = _saved_once(site, before(state, site)), _saved_once(site, after(state, site, plan))
    verdicts = (shapes, *exact), claims, bounds
    read, when = surroundings(state, site), state.changes.now
    return VerifiedRewrite(site, plan, emitted, point, *costs, *verdicts, read, when)


def _claims(state: State, site: Site, plan: Plan) -> tuple[Verdict, ...] | NoMatch:
    claims = check_claims(state, site, plan) if state.verify else ()
    broken = next((verdict for verdict in claims if not verdict.holds), None)
    return claims if broken is None else broken_claim(site, broken)


def measure_again(state: State, ready: VerifiedRewrite) -> VerifiedRewrite | NoMatch:
    """The claims of a rewrite once more, where all but what its site sees is as it was."""
    site = ready.site

    def measured() -> VerifiedRewrite | NoMatch:
        claims = _claims(state, site, ready.plan)
        site.scope.doubles.clear()
        if isinstance(claims, NoMatch):
            return claims
        ready.claims, ready.when = claims, state.changes.now
        return ready

    return _or_reason(site.rule, site.calls[0].node, measured)


def time_rewrite(state: State, ready: VerifiedRewrite) -> VerifiedRewrite | NoMatch:
    """Finds out what it saves of time, once: that hangs on the site and its plan alone."""
    site = ready.site

    def timed() -> VerifiedRewrite | NoMatch:
        if ready.timed is None:
            ready.timed = site_time(state, site, ready.plan, ready.emitted)
        return ready

    return _or_reason(site.rule, site.calls[0].node, timed)


def let_go(ready: VerifiedRewrite) -> None:
    """Drops what a rewrite that is committed, or that will not be, was made of: whoever still holds
    it, while the next one is prepared, shall not hold weights in float64.
    """
    forget(ready.site)
    ready.plan, ready.emitted, ready.held = Plan(), {}, False


def _saved_once(site: Site, costs: Costs) -> Costs:
    """Weights that others read until they are rewritten, too, are counted with the last of them."""
    return replace(costs, params=0, bytes=0) if site.repeats else costs


_PLAIN = (int, float, str, bool, tuple)


def describe(site: Site) -> dict[str, str]:
    """Scalar bindings of a site, for people and for the certificate."""
    plain = {n: shown(v) for n, v in site.scope.names.items() if isinstance(v, _PLAIN)}
    return {name: text for name, text in plain.items() if len(text) < 40}


def apply(state: State, stage: str, ready: VerifiedRewrite, seconds: float) -> list[fx.Node]:
    """Commits a prepared site and writes it down. Returns the nodes around: new ones, their inputs,
    their readers.
    """
    site = ready.site
    name, place = site.name, site.rule.place
    removed = tuple(str(call.node.meta.get("site") or call.node.name) for call in site.removed)
    stands_for = origins(site)
    started = time.perf_counter()
    bindings = describe(site)
    around = [*site.inputs, *(user for old in site.outputs.values() for user in old.users)]
    shrinks = ready.after.ops < ready.before.ops
    state.changes.at(ready.point)
    state.samples.changed(min(map(order_of, (ready.point, *site.nodes))))
    new = commit(state, site, ready.plan, ready.emitted, ready.point, shrinks)
    added = tuple(str(node.meta.get("site") or node.name) for node in new)
    seconds += time.perf_counter() - started
    event = Applied(
        stage,
        site.rule.label,
        name,
        place,
        removed,
        added,
        stands_for,
        ready.before,
        ready.after,
        ready.verdicts,
        bindings,
        seconds,
    )
    state.journal.add(event)
    let_go(ready)
    return alive([*new, *around])


def ready_at(
    state: State, rule: CompiledRule, node: fx.Node, start: PatternOp | None = None
) -> VerifiedRewrite | NoMatch:
    """A rule at one anchor, verified but not committed; or the reason why not.

    Weights that a numeric function cannot take (nan in an SVD) are a reason to leave the site, and
    so are expressions that have no value there and ops that cannot be checked; other errors are
    the rule's own, and are raised with the site's name.
    """

    def prepared() -> VerifiedRewrite | NoMatch:
        found = find(state, rule, node, start)
        if isinstance(found, NoMatch):
            return found
        ready = prepare(state, found)
        if isinstance(ready, NoMatch):
            forget(found)
        return ready

    return _or_reason(rule, node, prepared)


def _or_reason(rule: CompiledRule, node: fx.Node, ask: Callable[[], T | NoMatch]) -> T | NoMatch:
    """The answer; an error that is no mistake of the rule becomes a reason."""
    try:
        return ask()
    except LissomError as error:
        left = left_for(error, rule.source.name.span, node)
        if left is not None:
            return left
        raise _located(error, node) from error


def _located(error: LissomError, node: fx.Node) -> LissomError:
    """The error with the place in the model, if it names none."""
    first, *rest = error.diagnostics
    if any(label.where for label in first.labels):
        return error
    where = node.meta.get("site") or node.name
    source = node.meta.get("source") or "no source line"
    place = Label(None, where=f"{where} ({source})")
    return LissomError(replace(first, labels=(*first.labels, place)), *rest)


def attempt(
    state: State, stage: str, rule: CompiledRule, node: fx.Node, start: PatternOp | None = None
) -> list[fx.Node] | NoMatch:
    """Tries a rule at one anchor: the nodes around the rewrite, or why nothing happened."""
    begun = time.perf_counter()
    found = ready_at(state, rule, node, start)
    if isinstance(found, VerifiedRewrite):
        return apply(state, stage, found, time.perf_counter() - begun)
    return found


def refusal(stage: str, rule: CompiledRule, node: fx.Node, miss: NoMatch) -> Refused:
    """Why a candidate was left, for the journal."""
    where = miss.node if miss.node is not None else node
    place = str(miss.span) if miss.span is not None else ""
    structural = miss.stage == STRUCTURE or miss.code == "L001"
    return Refused(stage, rule.label, name_of(where), miss.code, miss.text(), place, structural)


def alive(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Those nodes that are still in the graph."""
    return [node for node in nodes if not is_erased(node)]
