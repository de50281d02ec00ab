"""The claims of a rule's `ensure`, measured at one site."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from torch import fx

from ...grammar.diagnostics import Label
from ...grammar.tree import tree as t
from ...grammar.tree.clauses import functions_in
from ..graph.writes import writes
from ..journal import Costs, Opaque, Verdict, VerdictKind
from ..match.site import Site
from ..ops.call import OpCall
from ..rules.scope import Scope, shown
from ..rules.state import State
from .cost import calls_costs, not_counted, plan_costs
from .perturbed import run_perturbed
from .planned import Plan, Planned
from .run import Env, operand_value, run_plan, weights_read
from .site_error import relative, site_error, squares
from .verify import named_weights

_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


def check_claims(state: State, site: Site, plan: Plan) -> tuple[Verdict, ...]:
    """One verdict for each claim of `ensure`; facts (`needs recover`) belong to the pipeline."""
    scope = site.scope
    facts = site.scope.facts
    facts.before, facts.after = before(state, site), after(state, site, plan)
    samples = [0]
    facts.error = lambda value: _error(state, site, plan, value, samples)
    facts.equal = lambda value: _equal(state, site, plan, value)
    try:
        return judge_claims(scope, site.rule.claims, samples)
    finally:  # they hold the site, which holds them: its weights would wait for the collector
        facts.error = facts.equal = None


def before(state: State, site: Site) -> Costs:
    return calls_costs(state.module, site.calls)


def after(state: State, site: Site, plan: Plan) -> Costs:
    """The planned ops, and matched ones that stay because others read them."""
    stays = calls_costs(state.module, kept(state, site, plan))
    new = plan_costs(plan)
    return Costs(
        new.params + stays.params,
        new.bytes + stays.bytes,
        new.macs + stays.macs,
        new.ops + stays.ops,
    )


def kept(state: State, site: Site, plan: Plan) -> list[OpCall]:
    """The `shared` ops that something reads when the others are gone, or that write to memory."""
    leaving, kept = set(site.gone), []
    for call in reversed([call for call in site.calls if call.node not in site.gone]):
        read = call.node in plan.reads or any(user not in leaving for user in call.node.users)
        if read or writes(call.node, state.module):
            kept.append(call)
        else:
            leaving.add(call.node)
    return kept


def judge_claims(
    scope: Scope, claims: Sequence[t.Claim], samples: list[int]
) -> tuple[Verdict, ...]:
    """A comparison reports both sides; `within` bounds a measured difference. Raises R014 where
    multiply-accumulates that nobody counts could decide it.
    """
    return tuple(_judged(scope, claim, samples, n) for n, claim in enumerate(claims))


def _judged(scope: Scope, claim: t.Claim, samples: list[int], number: int) -> Verdict:
    samples[0] = 0
    found, allowed, holds = _decided(scope, claim)
    how = "tested" if samples[0] else "proved"
    said = "" if holds else f"{shown(found)} against {shown(allowed)}"
    left, right = (s is not None and "error" in functions_in(s) for s in _sides(claim))
    if right and not left:  # `5% >= error(y)`
        found, allowed = allowed, found
    kind = VerdictKind.ERROR if left or right else VerdictKind.CLAIM
    numbers = samples[0], found, allowed
    return Verdict(claim.span.flat, how, holds, *numbers, said, kind=kind, clause=number)


def _sides(claim: t.Claim) -> tuple[t.Expr, t.Expr | None]:
    """What a claim measures, and what bounds it."""
    condition = claim.condition
    if claim.within is None and isinstance(condition, t.Binary) and condition.op in _COMPARISONS:
        return condition.left, condition.right
    return condition, claim.within


# -- what nobody counts ----------------------------------------------------------------------------

MOST_MACS = 10**18
"""What an uncounted op costs at most, where a claim is judged for all that it may cost."""


def _decided(scope: Scope, claim: t.Claim) -> tuple[Any, Any, bool]:
    """A claim, judged with what is counted; the same must come out whatever the other ops cost.

    An op that is there before and after, and reads the same, costs the same, so that it is no
    matter to `macs(after) < macs(before)`. Sums and quotients of costs go one way as one of them
    grows: where 0 and the most that there is agree, all between them do.
    """
    asked: list[Opaque] = []
    judged = [_supposing(scope, claim, asked, 0, 0, 0)]
    if asked:
        most = (0, MOST_MACS)
        corners = [corner for corner in product(most, most, most) if any(corner)]
        judged += [_supposing(scope, claim, asked, *corner) for corner in corners]
    if len({holds for *_, holds in judged}) > 1:
        place = Label(claim.span, "a lower bound is all that is known")
        raise not_counted(Costs(0, 0, 0, 0, tuple(dict.fromkeys(asked))), place)
    return judged[0]


def _supposing(
    scope: Scope, claim: t.Claim, asked: list[Opaque], kept: int, gone: int, new: int
) -> tuple[Any, Any, bool]:
    """A claim, where each uncounted op costs `kept` if it is there before and after, `gone` if only
    before, `new` if only after. `asked` is told of them.
    """
    facts = scope.facts
    assert isinstance(facts.before, Costs)
    assert isinstance(facts.after, Costs)
    before, after = set(facts.before.uncounted), set(facts.after.uncounted)

    def cost(op: Opaque) -> int:
        return (kept if op in before else new) if op in after else gone

    def supposed(ops: Sequence[Opaque]) -> int:
        asked.extend(ops)
        return sum(map(cost, ops))

    facts.supposed = supposed
    try:
        return _judge(scope, claim)
    finally:
        facts.supposed = None


def _judge(scope: Scope, claim: t.Claim) -> tuple[Any, Any, bool]:
    condition = claim.condition
    if claim.within is not None:
        found, allowed = scope.number(condition), scope.number(claim.within)
        return found, allowed, found <= allowed
    if isinstance(condition, t.Binary) and condition.op in _COMPARISONS:
        found, allowed = scope.number(condition.left), scope.number(condition.right)
        judged = scope.child({"_left": found, "_right": allowed})
        return found, allowed, bool(judged.number(_named(condition)))
    found = scope.number(condition)
    return None, None, found == 0 if isinstance(found, float) else bool(found)


def _named(condition: t.Binary) -> t.Binary:
    """The comparison with its sides evaluated already."""
    left, right = t.Name("_left", span=condition.span), t.Name("_right", span=condition.span)
    return t.Binary(condition.op, left, right, span=condition.span)


def _error(state: State, site: Site, plan: Plan, value: Any, samples: list[int]) -> float:
    error, count = site_error(state, site, plan)
    samples[0] = count
    return max(error(name) for name in _names(site, value))


def _equal(state: State, site: Site, plan: Plan, value: Any) -> float:
    """The largest relative difference between the perturbed original and the rewrite, on recorded
    inputs.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _names(site, value)}
    held = weights_read(state.module, named_weights(site, plan), plan.moved, None)
    for values in state.samples.seen(state.module, site.inputs):
        env: Env = {**values, **held}
        left = run_perturbed(state.module, site, plan, env, plan.moved, None)
        right = run_plan(plan, env, None)
        for name, parts in found.items():
            parts.append(
                squares(left[site.outputs[name]], operand_value(plan.outputs[name], right))
            )
    return max(map(relative, found.values()))


def _names(site: Site, value: Any) -> list[str]:
    """The outputs that `error(y)` means; by now `y` stands for what the rewrite made of it."""
    if isinstance(value, (fx.Node, Planned)):
        chosen = [name for name in site.outputs if site.scope.names[name] is value]
        return chosen or list(site.outputs)
    return list(site.outputs)
