"""One dimension class as a site of a rule: whether guards hold there, and what the rule keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t
from ..channels.classes import DimClass
from ..channels.flow import Flow
from ..graph.places import lies_at
from ..match.site import bind_all, holds
from ..rules.binding import GUARDS, PLAN, SITES, NoMatch
from ..rules.dimension import DimValue
from ..rules.facts import Ranking
from ..rules.global_ranking import Survey
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State
from .check import miss


@dataclass(slots=True, eq=False)
class DimSite:
    """A dimension class whose guards hold, the positions of it that the rule keeps, and the leaves
    that go.
    """

    rule: CompiledRule
    dim: DimClass
    scope: Scope
    keep: tuple[int, ...]
    removed: list[int] = field(init=False)

    def __post_init__(self) -> None:
        kept = set(self.keep)
        self.removed = [leaf for at, leaf in enumerate(self.dim.leaves) if at not in kept]

    @property
    def name(self) -> str:
        return self.dim.name

    def left(self, flow: Flow) -> dict[str, Any]:
        """What the rule's name means afterwards, in what is known of the cut model."""
        leaves = tuple(self.dim.leaves[place] for place in self.keep)
        return {self.rule.dim: DimValue.of(flow, replace(self.dim, leaves=leaves))}


def lies_in(flow: Flow, dim: DimClass, glob: str) -> bool:
    """A dimension lies where it is made."""
    made = [path for path, axis in dim.places if flow.roles.get((path, axis)) == "writes"]
    paths = made or [path for path, _ in dim.places]
    return any(lies_at(path, glob) for path in paths)


def key_of(dim: DimClass) -> object:
    """Some features of one axis may be free and others not: they are two classes."""
    return dim.roles, bool(dim.blocks)


def examined(
    state: State, rule: CompiledRule, dim: DimClass, survey: Callable[[], Survey] | None
) -> DimSite | NoMatch:
    """Guards and bindings in textual order, then what the rewrite keeps. Without a survey, raises
    `Scoring` where the rule asks for one.
    """
    scope = state.scope({**rule.args, rule.dim: DimValue.of(state.features(), dim)})
    scope.facts.ranking = Ranking(survey, key_of(dim))
    found = guard_miss(rule, scope)
    if found is not None:
        return found
    if dim.blocks:
        return miss(rule, SITES, f"it cannot be cut: {dim.blocks[0]}", "R012")
    keep = _positions(scope, rule)
    if len(keep) == dim.size:
        return miss(rule, PLAN, "the rule keeps everything")
    if not keep:
        return miss(rule, PLAN, "the rule keeps nothing", "R011")
    return DimSite(rule, dim, scope, keep)


def guard_miss(rule: CompiledRule, scope: Scope) -> NoMatch | None:
    """Binds names and asks guards in textual order, up to the first that does not hold."""
    step = 0
    for clause in rule.source.all(t.Where, t.Let):
        if isinstance(clause, t.Let):
            bind_all(scope, clause.bindings)
            continue
        for guard in clause.guards:
            step += 1
            if isinstance(guard, t.Guard) and not holds(scope, guard.condition):
                return _unheld(rule, scope, guard, step)
    return None


def _unheld(rule: CompiledRule, scope: Scope, guard: t.Guard, step: int) -> NoMatch:
    said = f"`{guard.condition.span.text}` does not hold"
    if guard.reason:
        said = scope.interpolate(guard.reason, rule.message)
    return NoMatch(GUARDS, step, lambda: said, guard.span, None)


def _positions(scope: Scope, rule: CompiledRule) -> tuple[int, ...]:
    """What `D := keep` keeps. Raises R001 for what is no choice of positions, and where `perturb`
    masks something else than the rewrite cuts.
    """
    step = rule.resize
    keep = _whole(scope, step.value)
    for effect in (m for p in rule.source.all(t.Perturb) for m in p.moves):
        outside = next(k.value for k in effect.call.keywords if k.name.text == "outside")
        if _whole(scope, outside) != keep:
            place = Label(effect.span, "masks other positions than the rewrite cuts")
            raise fail("R001", "a cut must be the one that was masked", place)
    return keep


def _whole(scope: Scope, expr: t.Expr) -> tuple[int, ...]:
    value = scope.number(expr)
    found = value.tolist() if isinstance(value, torch.Tensor) else value
    found = list(found) if isinstance(found, (list, tuple)) else [None]
    extent = next(v for v in scope.names.values() if isinstance(v, DimValue))
    if any(not isinstance(n, int) or not 0 <= n < extent for n in found):
        place = Label(expr.span, f"whole numbers from 0 to {extent - 1} are meant")
        raise fail("R001", "this is no choice of positions", place)
    return tuple(sorted(set(found)))
