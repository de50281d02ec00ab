"""Rules over parameters: `match param w of (conv2d | linear)` ... `w := numbers`, one at a time.

A candidate is one memory that ops of the set read as a weight. `perturb { w := numbers }` says what
the model is to compute with, `rewrite { w := numbers }` what is stored: both models must be equal.
Where several layers share the memory, all of them get the new numbers and go on sharing them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...grammar.diagnostics import Label, did_you_mean, fail
from ...grammar.tree import tree as t
from ..apply.begins import begins
from ..apply.cost import model_costs
from ..apply.planned import check_shape
from ..graph.exchange import exchange, like
from ..graph.index import GraphView
from ..graph.snapshot import finish, snapshot
from ..journal import Applied, Costs, Verdict, VerdictKind
from ..rules.binding import PLAN, SITES, NoMatch
from ..rules.constraint import Constraint, constrain, constraint_of
from ..rules.rule import CompiledRule
from ..rules.scope import ParamRef, Scope
from ..rules.state import State
from .check import Change, CutTrial, WholeTarget, miss
from .dims import guard_miss
from .target import Condition, Rank, change_conditions, change_rank, line
from .weights import ParamPlace, is_same, param_at, params_of, writer_of

EXACT_NUMBERS = "the model with what is stored equals the one with the perturbed numbers"


@dataclass(slots=True, eq=False)
class ParamSite:
    """A parameter at which the guards hold. moved: what the model is to compute with; stored: what
    is written, both of the parameter's dtype and memory format.
    """

    rule: CompiledRule
    param: ParamPlace
    scope: Scope
    moved: Tensor
    stored: Tensor

    @property
    def name(self) -> str:
        return self.param.name


# -- one parameter ---------------------------------------------------------------------------------


def _examined(state: State, rule: CompiledRule, param: ParamPlace) -> ParamSite | NoMatch:
    scope = state.scope({**rule.args, rule.param: param.ref})
    found = guard_miss(rule, scope) or _stays(state, rule, param)
    if found is not None:
        return found
    site = _site(rule, param, scope)
    if torch.equal(site.stored, param.ref.tensor) and torch.equal(site.moved, param.ref.tensor):
        return miss(rule, PLAN, "the rule keeps every number", "R015", param.ref.call.node)
    return _again(site) or _not_finite(site) or _unlike(site) or site


def _stays(state: State, rule: CompiledRule, param: ParamPlace) -> NoMatch | None:
    """Why the model does not let its numbers change."""
    node = param.ref.call.node
    other = next((path for path in param.paths if not is_same(state, param, path)), None)
    if other is not None:
        return miss(rule, SITES, f"`{other}` sees its memory in another way", "R015", node)
    writer = writer_of(state, param)
    text = f"`{writer}` writes into it when the model runs"
    return None if writer is None else miss(rule, SITES, text, "R015", writer)


def _mark(rule: CompiledRule, param: ParamPlace) -> tuple[str, str]:
    return rule.name, param.ref.name


def _site(rule: CompiledRule, param: ParamPlace, scope: Scope) -> ParamSite:
    """The numbers of both halves; one that a rule leaves out says the same as the other. Raises
    R003 for numbers of another shape.
    """
    moves = [m for p in rule.source.all(t.Perturb) for m in p.moves]
    steps = [s for r in rule.source.all(t.Rewrite) for s in r.steps]
    moved = [_numbers(scope, move, param.ref) for move in moves]
    stored = [_numbers(scope, step, param.ref) for step in steps]
    if not moves and rule.kind != "approx":
        moved = [param.ref.tensor]
    return ParamSite(rule, param, scope, (moved or stored)[-1], (stored or moved)[-1])


def _numbers(scope: Scope, step: t.Assign, ref: ParamRef) -> Tensor:
    value = scope.number(step.value)
    check_shape(step, value, ref)
    return like(ref.tensor, value)


def _again(site: ParamSite) -> NoMatch | None:
    """A rule does not change what it made itself, unless it says why that ends."""
    rule, node = site.rule, site.param.ref.call.node
    if rule.recursive or _mark(rule, site.param) not in node.meta.get("moved", ()):
        return None
    text = "this rule gave it its numbers; `recursive decreasing ...` would allow it again"
    return miss(rule, SITES, text, "L001", node)


def _not_finite(site: ParamSite) -> NoMatch | None:
    """Numbers that are infinite or nan and were not."""
    was = torch.isfinite(site.param.ref.tensor)
    lost = int((was & ~(torch.isfinite(site.stored) & torch.isfinite(site.moved))).sum())
    text = f"{lost} of its {was.numel():,} numbers would no longer be finite"
    return miss(site.rule, PLAN, text, "K002", site.param.ref.call.node) if lost else None


def _trained(site: ParamSite) -> list[Constraint]:
    """What the rule says of the parameter while it is trained."""
    said = (one for clause in site.rule.source.all(t.Train) for one in clause.constraints)
    return [constraint_of(site.rule.name, one, site.scope) for one in said]


def _unlike(site: ParamSite) -> None:
    """Raises F103 where what is stored is not what `train` says."""
    for one in _trained(site):
        verdict = begins(one, site.stored)
        if not verdict.holds:
            message = f"`{site.rule.name}` stores another weight than `train` says"
            hint = "what `train` computes of the stored weight must be the stored weight"
            note = f"{verdict.worst:.3g} units in the last place apart at `{site.name}`"
            raise fail("F103", message, Label(one.value.span), note=note, help=hint)


# -- verifying -------------------------------------------------------------------------------------


def with_numbers(state: State, site: ParamSite, numbers: Tensor) -> fx.GraphModule:
    """The model with other numbers in the parameter; it shares everything else."""
    finish(state.module)
    module = snapshot(state.module)
    exchange(module, site.param.paths, numbers)
    return module


@dataclass
class _NumbersTrial(CutTrial[ParamSite]):
    """Stored numbers beside the perturbed ones. `view` is the model before: it has the same ops."""

    view: GraphView

    claim = EXACT_NUMBERS
    remedy = "what `rewrite` stores must compute what `perturb` says; check both `:=`"

    @cached_property
    def after(self) -> fx.GraphModule:
        return with_numbers(self.state, self.site, self.site.stored)

    def perturbed(self) -> nn.Module:
        if self.is_split:
            return with_numbers(self.state, self.site, self.site.moved)
        return self.after

    @property
    def is_split(self) -> bool:
        return not torch.equal(self.site.moved, self.site.stored)

    @cached_property
    def costs(self) -> tuple[Costs, Costs]:
        """Shapes and dtypes stay, so that nothing costs more or less."""
        costs = model_costs(self.state.module, self.state.view)
        return costs, costs

    def equality(self) -> Verdict:
        """Numbers that are the same bit for bit need no run of the model."""
        if self.is_split:
            return super().equality()
        rule = self.site.rule
        if rule.kind != "approx" or rule.source.all(t.Perturb):
            said = "same bits"
            return Verdict(self.claim, "proved", True, 0, 0.0, 0.0, said, kind=VerdictKind.EQUALITY)
        return self.unsplit()

    def left(self) -> dict[str, Any]:
        return {}


class ParamReady(Change[_NumbersTrial]):
    """Numbers that wait to be verified and committed."""

    @property
    def site(self) -> ParamSite:
        return self.tried.site

    @property
    def node(self) -> fx.Node:
        return self.site.param.ref.call.node


# -- the target ------------------------------------------------------------------------------------


class ParamTarget(WholeTarget[ParamPlace, ParamReady]):
    """Candidates are the weights of ops of the set, each memory once."""

    @property
    def _set(self) -> t.OpSet:
        return self.rule.source.all(t.MatchParam)[0].ops

    @property
    def ops(self) -> frozenset[str]:
        """The names of the set."""
        return frozenset(word.text for word in self._set.names)

    def candidates(self) -> list[ParamPlace]:
        at = self.rule.at
        found = params_of(self.state, self.ops)
        return found if at is None else [p for p in found if param_at(self.state, p, at)]

    def alive(self, places: Sequence[ParamPlace]) -> list[ParamPlace]:
        """Parameters keep their paths."""
        now = {param.name: param for param in self.candidates()}
        return [now[param.name] for param in places if param.name in now]

    def weigh(self, place: ParamPlace) -> ParamReady | NoMatch:
        return self._or_reason(lambda: self._changed(place), place.ref.call.node)

    def _changed(self, place: ParamPlace) -> ParamReady | NoMatch:
        state, site = self.state, _examined(self.state, self.rule, place)
        if isinstance(site, NoMatch):
            return site
        return ParamReady.of(_NumbersTrial(state, site, state.view))

    def commit(self, stage: str, ready: ParamReady, seconds: float) -> None:
        """The stored numbers take the place of the old ones, everywhere."""
        started = time.perf_counter()
        site, state = ready.site, self.state
        readers = _renewed(state, site)
        for node in readers:
            node.meta["moved"] = (*node.meta.get("moved", ()), _mark(site.rule, site.param))
            _constrain(state, node, site)
        seconds += time.perf_counter() - started
        names = (name for n in readers for name in n.meta.get("origins") or (n.name,))
        state.journal.add(
            Applied(
                stage,
                site.rule.label,
                site.name,
                site.rule.place,
                (),
                (),
                tuple(sorted(set(names))),
                ready.before,
                ready.after,
                ready.verdicts,
                {self.rule.param: ", ".join(site.param.paths)},
                seconds,
                site.param.paths,
            )
        )

    def with_one(self, ready: ParamReady) -> tuple[fx.GraphModule, Costs]:
        return with_numbers(self.state, ready.site, ready.site.stored), ready.after

    # -- telling -----------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        return f"weight of {'any op' if '_' in self.ops else ' or '.join(sorted(self.ops))}"

    def name(self, place: ParamPlace) -> str:
        return place.name

    def at(self, places: Sequence[ParamPlace], path: str) -> list[ParamPlace]:
        named = [param for param in places if param_at(self.state, param, path)]
        if places and not named:
            known = [param.name for param in places]
            hint = next(iter(did_you_mean(path, known)), f"there are {', '.join(known[:12])}")
            where = Label(None, where=path)
            raise fail("U008", f"the rule reads no parameter at `{path}`", where, help=hint)
        return named

    def conditions(self) -> Iterator[Condition]:
        changes = [m for p in self.rule.source.all(t.Perturb, t.Rewrite) for m in _steps(p)]
        return change_conditions(
            self.rule,
            ("memory", "nothing writes into it, or sees its memory in another way"),
            ("numbers", f"some change, and stay finite: {'; '.join(map(line, changes))}"),
        )

    def rank(self, miss: NoMatch) -> Rank:
        return change_rank(miss)


def _constrain(state: State, node: fx.Node, site: ParamSite) -> None:
    call, new = state.view.call(node), [replace(one, made=site.stored) for one in _trained(site)]
    paths = {} if call is None or not new else call.params
    for name in (name for name, path in paths.items() if path in site.param.paths):
        constrain(node, name, new)


def _steps(clause: t.Perturb | t.Rewrite) -> Sequence[t.Node]:
    return clause.moves if isinstance(clause, t.Perturb) else clause.steps


def _renewed(state: State, site: ParamSite) -> list[fx.Node]:
    """Puts the stored numbers into the working model; its nodes that compute with them."""
    readers = state.readers(site.name)
    holders = list(dict.fromkeys(node for node, _ in state.view.owners(site.name)))
    changed = [*holders, *(node for node in readers if node not in holders)]
    for node in changed:
        state.view.forget(node)
    exchange(state.module, site.param.paths, site.stored)
    for node in changed:
        state.view.add(node)
    state.flow, state.shared = None, {}
    state.changes.everywhere()
    state.samples.forget()
    return readers
