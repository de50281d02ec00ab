"""A rule over values on one drawn model: what becomes of each value, and whether all that reads it
sees what the rule's words say. Judged on a deep copy of the model, in whose graph a function that
evaluates these words stands behind the value.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from ....grammar.tree import tree as t
from ....grammar.tree.clauses import builds, moves
from ...graph.snapshot import finish
from ...measure.compare import outputs
from ...rules.rule import CompiledRule
from ...rules.state import State
from ...targets.values import ValueReady, ValueSite, ValueTarget
from ..budget_check import fresh
from ..trial import FIRED, VACUOUS, WRONG, Outcome
from ..whole import (
    MOVES,
    Before,
    agreement,
    farthest,
    misdescribed,
    outcomes_of,
    promise_kept,
    ratio_of,
    tried_at,
    tried_each,
)


def tried_values(state: State, rule: CompiledRule, seed: int) -> list[Outcome]:
    """The rule at every value that the model has, one after another."""
    return tried_each(ValueTarget(state, rule), seed, try_value)


value_outcomes = outcomes_of(tried_values)


def try_value(target: ValueTarget, node: fx.Node, seed: int) -> Outcome:
    """What becomes of one value. `seed` chooses the other inputs that are compared."""
    before = Before.of(target.state)
    found = tried_at(target, node, lambda ready: _applied(target, ready, before, seed))
    return before.left_alone(found, target.name(node))


# -- what the words say ----------------------------------------------------------------------------

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


def computed(site: ValueSite, expr: t.Expr, values: Mapping[str, Tensor]) -> Any:
    """An expression of ops on tensors; what names none of these is a number of the rule."""
    if isinstance(expr, t.Name) and expr.text in values:
        return values[expr.text]
    if isinstance(expr, t.Binary) and expr.op in _OPERATORS:
        left, right = (computed(site, part, values) for part in (expr.left, expr.right))
        return _OPERATORS[expr.op](left, right)
    op = site.scope.state.vocabulary
    if not isinstance(expr, t.Call) or expr.function.span.text not in op:
        return site.scope.number(expr)
    spec = op[expr.function.span.text]
    given = [computed(site, arg, values) for arg in expr.args]
    settings = dict(zip(spec.attrs, given[len(spec.inputs) :], strict=False))
    named = {k.name.text: site.scope.number(k.value) for k in expr.keywords}
    weights = {param.name: named.pop(param.name, None) for param in spec.params}
    inputs = dict(zip((one.name for one in spec.inputs), given, strict=False))
    held = {name: _rounded(w, given[0]) for name, w in weights.items()}
    return spec.run(inputs, held, {**spec.defaults, **settings, **named})


def _rounded(weight: Any, value: Any) -> Any:
    """A weight in the precision of what it is applied to."""
    return weight.to(value.dtype) if isinstance(weight, Tensor) else weight


def meant(module: fx.GraphModule, site: ValueSite) -> fx.GraphModule:
    """A copy of the model in which all that reads the value sees what `perturb` says; what
    `rewrite` says where there is none and the rule is approximate; the value itself for any other.
    """
    rule = site.rule
    steps = [(rule.value, move.value) for move in moves(rule.source)]  # type: ignore[union-attr]
    if not steps and rule.kind == "approx":
        steps = [(build.targets[0].text, build.value) for build in builds(rule.source)]

    def seen(value: Tensor) -> Tensor:
        values = {rule.value: value}
        for name, expr in steps:
            values[name] = computed(site, expr, values)
        return values[rule.value]

    copied = copy.deepcopy(module)
    node = next(n for n in copied.graph.nodes if n.name == site.node.name)
    readers = list(node.users)
    with copied.graph.inserting_after(node):
        told = copied.graph.call_function(seen, (node,))
    told.meta["val"] = node.meta["val"]
    for reader in readers:
        reader.replace_input_with(node, told)
    copied.recompile()
    return copied


# -- after a commit --------------------------------------------------------------------------------


def _applied(target: ValueTarget, ready: ValueReady, before: Before, seed: int) -> Outcome:
    """Commits, and compares the whole model with the one that the rule's words mean."""
    state, site = target.state, ready.site
    inputs = state.samples.inputs
    reference = meant(before.module, site)
    found = promise_kept(before.module, reference, ready, inputs)
    target.commit("trial", ready, 0.0)
    finish(state.module)
    problems = [*problems_of(before, state.module), *misdescribed(state.module, inputs)]
    if problems:
        return Outcome(WRONG, "structure", "; ".join(problems))
    others = agreement(reference, state.module, inputs, seed, site.name)
    if isinstance(others, Outcome):
        return others
    if found is not None and not found.holds:
        return Outcome(WRONG, "budget", f"the error is {found.given:.4g} of its budget")
    sides = ((before.module, state.module), (reference, state.module))
    moved, apart = (farthest(*(outputs(m, fresh(inputs)) for m in pair)) for pair in sides)
    if apart > _AGREES:
        return Outcome(WRONG, "other numbers", f"at {site.name}: {apart:.2g}")
    if moved <= MOVES and site.rule.kind == "approx":
        return Outcome(VACUOUS, "the new ops move no output", site.name)
    return Outcome(FIRED, ratio=ratio_of(ready), kept=found, elsewhere=others)


_AGREES = 1e-3
"""Both models round, in float32 here and there."""


def problems_of(before: Before, module: fx.GraphModule) -> list[str]:
    """What the commit did beside adding ops: nothing that the model holds is another."""
    old, new = (m.state_dict(keep_vars=True) for m in (before.module, module))
    if before.is_changed() or any(new.get(name) is not held for name, held in old.items()):
        return ["the original changed, or what the model holds"]
    return []
