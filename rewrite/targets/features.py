"""Rules over dimensions: `match dim D in channels` ... `D := keep`, one class at a time.

A site is a dimension class. `perturb { zero(readers(D), outside = keep) }` gives the masked model,
the rewrite cuts it, and both must be equal on the whole model's inputs. Nothing of the working
model changes before the commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.tree import tree as t
from ..channels.classes import DimClass, classes
from ..channels.flow import Flow
from ..channels.listing import dims_at, reason_of, source_of
from ..channels.masked import masked
from ..channels.update_after_cut import cut_and_carry
from ..graph.memory import mutations
from ..graph.places import lies_at
from ..graph.snapshot import finish
from ..journal import Applied, Costs
from ..match.site import bind_all, holds
from ..rules.binding import GUARDS, PLAN, SITES, NoMatch, left_for
from ..rules.dimension import DimValue
from ..rules.global_ranking import Scoring, Survey
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State
from .check import Change, CutTrial, WholeTarget, change_conditions, change_rank, miss
from .target import Condition, Rank, line

EXACT_CUT = "the cut equals the model in which every sum leaves the removed features out"


@dataclass(slots=True, eq=False)
class DimSite:
    """A dimension class whose guards hold, and the positions of it that the rule keeps."""

    rule: CompiledRule
    dim: DimClass
    scope: Scope
    keep: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.dim.name

    @property
    def removed(self) -> list[int]:
        kept = set(self.keep)
        return [leaf for place, leaf in enumerate(self.dim.leaves) if place not in kept]


def _lies_at(flow: Flow, dim: DimClass, glob: str) -> bool:
    """A dimension lies where it is made."""
    made = [path for path, axis in dim.places if flow.roles.get((path, axis)) == "writes"]
    paths = made or [path for path, _ in dim.places]
    return any(lies_at(path, glob) for path in paths)


def _key(dim: DimClass) -> object:
    """Some features of one axis may be free and others not: they are two classes."""
    return dim.roles, bool(dim.blocks)


# -- one class -------------------------------------------------------------------------------------


def _examined(
    state: State, rule: CompiledRule, dim: DimClass, survey: Callable[[], Survey] | None
) -> DimSite | NoMatch:
    """Guards and bindings in textual order, then what the rewrite keeps. Without a survey, raises
    `Scoring` where the rule asks for one.
    """
    scope = state.scope({**rule.args, rule.dim: DimValue.of(state.features(), dim)})
    scope.facts.update({"survey": survey, "class": _key(dim)})
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


# -- verifying -------------------------------------------------------------------------------------


@dataclass
class _CutTrial(CutTrial[DimSite]):
    """A cut beside the masked model; beside the model itself where the rule perturbs nothing."""

    flow: Flow

    claim = EXACT_CUT
    remedy = "what is removed must not count: `perturb { zero(readers(D), outside = keep) }`"

    def perturbed(self) -> nn.Module:
        if self.site.rule.source.all(t.Perturb):
            return masked(self.state.features(), self.site.removed)
        return self.unchanged()

    def left(self) -> dict[str, Any]:
        leaves = tuple(self.site.dim.leaves[place] for place in self.site.keep)
        dim = DimValue.of(self.flow, replace(self.site.dim, leaves=leaves))
        return {self.site.rule.dim: dim}


class DimReady(Change[_CutTrial]):
    """A cut that waits to be verified and committed."""

    @property
    def site(self) -> DimSite:
        return self.tried.site

    @property
    def flow(self) -> Flow:
        return self.tried.flow


# -- the target ------------------------------------------------------------------------------------


class FeatureTarget(WholeTarget[DimClass, DimReady]):
    """Candidates are the dimension classes of the present graph, in its order."""

    def candidates(self) -> list[DimClass]:
        flow, at = self.state.features(), self.rule.at
        return [dim for dim in classes(flow) if at is None or _lies_at(flow, dim, at)]

    def alive(self, places: Sequence[DimClass]) -> list[DimClass]:
        """Classes keep their places when others are cut."""
        now = {_key(dim): dim for dim in classes(self.state.features())}
        return [now[_key(dim)] for dim in places if _key(dim) in now]

    def weigh(self, place: DimClass) -> DimReady | NoMatch:
        return self._or_reason(lambda: self._cut(place))

    def _cut(self, place: DimClass) -> DimReady | NoMatch:
        site = _examined(self.state, self.rule, place, lambda: self.scores)
        if isinstance(site, NoMatch):
            return site
        flow = cut_and_carry(self.state.features(), site.removed)
        return DimReady.of(_CutTrial(self.state, site, flow.view, flow))

    @cached_property
    def scores(self) -> Survey:
        """The scores of all dimensions, taken once in a step."""
        scores = {}
        for dim in self.candidates():
            try:
                _examined(self.state, self.rule, dim, None)
            except Scoring as asked:
                if not dim.blocks:
                    scores[_key(dim)] = asked.score
            except LissomError as error:  # it has no score: the others are ranked without it
                if left_for(error, self.rule.source.name.span, None) is None:
                    raise
        return Survey(scores)

    def commit(self, stage: str, ready: DimReady, seconds: float) -> None:
        """The cut model becomes the working one."""
        started = time.perf_counter()
        site, state, old = ready.site, self.state, self.state.module
        bindings = {site.rule.dim: f"{site.dim.size} -> {len(site.keep)}"}
        state.module, state.view = ready.flow.view.root, ready.flow.view
        state.mutations = mutations(state.module)
        state.flow = ready.flow
        state.changes.everywhere()
        state.samples.forget()
        changed = reshaped(old, state.module)
        seconds += time.perf_counter() - started
        state.journal.add(
            Applied(
                stage,
                site.rule.label,
                site.name,
                site.rule.place,
                (),
                (),
                changed,
                ready.before,
                ready.after,
                ready.verdicts,
                bindings,
                seconds,
                tuple(dict.fromkeys(path for path, _ in site.dim.places)),
            )
        )

    def with_one(self, ready: DimReady) -> tuple[fx.GraphModule, Costs]:
        finish(self.state.module)
        return ready.model, ready.after

    # -- telling -----------------------------------------------------------------------------------

    kind = "any dimension"

    def name(self, place: DimClass) -> str:
        return place.name

    def at(self, places: Sequence[DimClass], path: str) -> list[DimClass]:
        return dims_at(places, path)

    def conditions(self) -> Iterator[Condition]:
        """What is asked after the guards is told apart by step."""
        return change_conditions(
            self.rule,
            ("cut", "nothing in the model keeps it from being cut"),
            ("keep", f"some features go and some stay: {line(self.rule.resize)}"),
        )

    def rank(self, miss: NoMatch) -> Rank:
        return change_rank(miss)

    def source(self, place: DimClass, miss: NoMatch) -> str:
        """The line of the op that keeps the dimension; else of the one that makes it."""
        flow = self.state.features()
        told = (reason_of(flow, block).source for block in place.blocks)
        return next(told, "") or source_of(flow, place)


def reshaped(old: fx.GraphModule, new: fx.GraphModule) -> tuple[str, ...]:
    """The nodes of the captured model whose values have other shapes now."""
    known = {node.name: node.meta.get("val") for node in old.graph.nodes}
    found = [n for n in new.graph.nodes if n.name in known and n.meta.get("val") != known[n.name]]
    names = (name for node in found for name in node.meta.get("origins") or (node.name,))
    return tuple(sorted(set(names)))
