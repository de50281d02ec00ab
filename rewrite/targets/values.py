"""Rules over values: `match value y : f[...] at "layers.*"` ... `y = clamp(y)`, one at a time.

A candidate is what an op gives that lies at one of the globs. `perturb { y := op(y) }` says what
all that reads it is to see: the model runs, and the value is exchanged on its way. `rewrite { y =
op(y) }` puts ops into the graph. Both models must be equal, and so must the ops of both on numbers
of all sizes, since what is idle on the data shows nothing there. All is planned on a copy of the
graph: nothing of the working model changes before the commit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from ...grammar.diagnostics import Label
from ...grammar.tree import tree as t
from ...grammar.tree.clauses import has_exit
from ..apply.commit import commit, emit_plan, origins
from ..apply.engine import describe
from ..apply.plan import Constructor
from ..apply.planned import Plan, Planned, require_spec
from ..exits.rows import leaving_changes_nothing
from ..graph.index import GraphView
from ..graph.memory import after, memory_of
from ..graph.places import last_of_places, name_of, node_at, nodes_at
from ..graph.runs import RunFailed
from ..graph.snapshot import finish, snapshot
from ..graph.writes import written
from ..journal import Applied, Costs, Verdict
from ..match.shapes import match_shapes
from ..match.site import Site
from ..measure.compare import equality_at
from ..ops.call import OpCall
from ..ops.spec import TensorSpec
from ..rules.binding import PLAN, SITES, Bindings, NoMatch
from ..rules.changes import Changes
from ..rules.rule import CompiledRule
from ..rules.scope import Scope
from ..rules.state import State
from .check import Change, CutTrial, WholeTarget, miss
from .dims import guard_miss
from .exchanged import Exchanged, Ops, spread
from .target import Condition, Rank, change_conditions, change_rank, line

EXACT_VALUE = "the model with the new ops equals the one in which the value was exchanged"


@dataclass(slots=True, eq=False)
class ValueSite:
    """A value at which the guards hold. moved: what all its readers are to see, None where an
    approximate rule has no `perturb`; built: what `rewrite` gives them; made: the model with these
    ops; added: their names.
    """

    rule: CompiledRule
    node: fx.Node
    scope: Scope
    moved: Plan | None
    built: Plan
    made: State
    added: tuple[str, ...]

    @property
    def name(self) -> str:
        return name_of(self.node)


# -- one value -------------------------------------------------------------------------------------


def values_of(state: State, rule: CompiledRule) -> list[fx.Node]:
    """The results of ops that lie at the rule's globs and have its type, and that something reads,
    in the order of the model.
    """
    globs = [glob for clause in rule.source.all(t.MatchValue) for glob in clause.sites]
    found = [
        node
        for node in state.module.graph.nodes
        if _gives_one_tensor(state, rule, node)
        and any(node_at(node, glob) for glob in globs)
        and (rule.at is None or node_at(node, rule.at))
        and _fits(state, rule, _scope(state, rule, node))
    ]
    asked = globs if rule.at is None else [rule.at]
    return last_of_places(found, asked) if has_exit(rule.source) else found


def _gives_one_tensor(state: State, rule: CompiledRule, node: fx.Node) -> bool:
    """Inputs of the model, parts of a result and what unknown layers give can be watched, but no op
    is put between them and what reads them.
    """
    one = bool(node.users) and isinstance(node.meta.get("val"), TensorSpec)
    watched = rule.kind == "observe" and node.op not in ("get_attr", "output")
    return one and (watched or state.view.call(node) is not None)


def _scope(state: State, rule: CompiledRule, node: fx.Node) -> Scope:
    return state.scope({**rule.args, rule.value: node})


def scope_of(state: State, rule: CompiledRule, node: fx.Node) -> Scope:
    """What names mean at a value, the sizes of its type included."""
    scope = _scope(state, rule, node)
    _fits(state, rule, scope)
    return scope


def _fits(state: State, rule: CompiledRule, scope: Scope) -> bool:
    """Whether it has the type; names the sizes of that."""
    return match_shapes(state, scope, Bindings(), rule.pattern) is None


def _examined(state: State, rule: CompiledRule, node: fx.Node) -> ValueSite | NoMatch:
    scope = scope_of(state, rule, node)
    found = guard_miss(rule, scope) or _again(rule, node) or _stays(state, rule, node)
    if found is not None:
        return found
    plan = Constructor(state, _site(state, rule, node, scope)).run([t.Rewrite])
    require_spec(rule.value, node, plan.outputs[rule.value], Label(rule.source.name.span))
    there = _there_already(state, rule, node, plan)
    if there is not None:
        return there
    moved = _moved(state, rule, node, scope)
    return ValueSite(rule, node, scope, moved, plan, *_made(state, rule, node, scope))


def _again(rule: CompiledRule, node: fx.Node) -> NoMatch | None:
    """A rule does not change what it made itself, unless it says why that ends."""
    own = next((n for n in (node, *node.users) if rule.name in n.meta.get("rules", ())), None)
    if own is None or rule.recursive:
        return None
    text = f"`{own}` was made by this rule; `recursive decreasing ...` would allow it again"
    return miss(rule, SITES, text, "L001", own)


def _stays(state: State, rule: CompiledRule, node: fx.Node) -> NoMatch | None:
    """Who reads the value after it was written to must see what was written."""
    own = memory_of(state.view, node)
    for writer in after(state.mutations, node):
        for value in written(writer, state.module):
            if node in memory_of(state.view, value) or own & memory_of(state.view, value):
                text = f"`{writer}` writes into its memory afterwards"
                return miss(rule, SITES, text, "R015", writer)
    return None


def _there_already(state: State, rule: CompiledRule, node: fx.Node, plan: Plan) -> NoMatch | None:
    """The new op would do what one beside it does."""
    new = plan.outputs[rule.value]
    if new is node:
        return miss(rule, SITES, "the rule keeps the value", "R015", node)
    if plan.ops != [new] or new.params:
        return None
    (first, *others), before = node.users, state.view.call(node)
    if not others and _is_same(state.view.call(first), new):
        return miss(rule, SITES, f"the same {new.op.name} is its only reader", "R015", first)
    if "idempotent" in new.op.traits and _is_same(before, new):
        return miss(rule, SITES, f"it is made by the same {new.op.name}", "R015", node)
    return None


def _is_same(call: OpCall | None, new: Planned) -> bool:
    return call is not None and call.op is new.op and call.attrs == new.attrs


# -- planning --------------------------------------------------------------------------------------


def _site(state: State, rule: CompiledRule, node: fx.Node, scope: Scope) -> Site:
    """The value as a site of ops, of which none goes away."""
    call = state.view.call(node)
    assert call is not None
    own = scope.child({rule.value: node})
    own.facts.repeats = frozenset
    return Site(rule, Bindings(), own, [call], [node], [], set(), {rule.value: node})


def _moved(state: State, rule: CompiledRule, node: fx.Node, scope: Scope) -> Plan | None:
    """What `perturb` says; without it the value itself, and None for an approximate rule. An exit
    hands the value on: who does not leave sees nothing of it.
    """
    moves = [m for p in rule.source.all(t.Perturb) for m in p.moves]
    if not moves:
        split = rule.kind != "approx" or has_exit(rule.source)
        return Plan(outputs={rule.value: node}) if split else None
    made = Constructor(state, _site(state, rule, node, scope))
    made.plan.outputs[rule.value] = made.graph_value(moves[-1].value)
    require_spec(rule.value, node, made.plan.outputs[rule.value], Label(rule.source.name.span))
    return made.plan


def _made(
    state: State, rule: CompiledRule, node: fx.Node, scope: Scope
) -> tuple[State, tuple[str, ...]]:
    """A copy of the model with the ops of `rewrite` behind the value, and their names."""
    finish(state.module)
    copied = replace(state, module=snapshot(state.module), changes=Changes())
    same = next(n for n in copied.module.graph.nodes if n.name == node.name)
    site = _site(copied, rule, same, scope)
    plan = Constructor(copied, site).run([t.Rewrite])
    new = commit(copied, site, plan, emit_plan(copied, site, plan), same.next, False)
    finish(copied.module)
    return copied, tuple(map(name_of, new))


# -- verifying -------------------------------------------------------------------------------------


@dataclass
class _ValueTrial(CutTrial[ValueSite]):
    view: GraphView

    claim = EXACT_VALUE
    remedy = "what `rewrite` builds must compute what `perturb` says; check both"

    def perturbed(self) -> nn.Module:
        site = self.site
        if site.moved is None:
            return self.after
        return Exchanged(self.unchanged(), Ops(site.node, site.moved))

    def equality(self) -> Verdict:
        """On the examples, and of the ops alone on numbers of all sizes."""
        site = self.site
        if site.moved is None:
            return self.unsplit()
        said, built = Ops(site.node, site.moved), Ops(site.node, site.built)
        drawn = spread(site.node)
        alone = equality_at(said, built, drawn, len(site.built.ops)) if drawn else None
        if alone is not None and not alone.holds:
            return replace(alone, claim=self.claim)
        return super().equality()

    def left(self) -> dict[str, Any]:
        return dict(self.site.built.handles)

    def cannot_run(self, error: RunFailed) -> NoMatch:
        """A head may not take what the value is at other sizes."""
        if not has_exit(self.site.rule.source):
            return super().cannot_run(error)
        return miss(self.site.rule, PLAN, f"the head does not run: {error.reason}", "R017")

    def claims(self) -> tuple[Verdict, ...]:
        """What the rule promises, and of an exit that the others do not see who leaves."""
        found = super().claims()
        if not has_exit(self.site.rule.source):
            return found
        return (*found, leaving_changes_nothing(self.after, self.state.samples.examples))


class ValueReady(Change[_ValueTrial]):
    """New ops behind a value that wait to be verified and committed."""

    @property
    def site(self) -> ValueSite:
        return self.tried.site

    @property
    def node(self) -> fx.Node:
        return self.site.node


# -- the target ------------------------------------------------------------------------------------


class ValueTarget(WholeTarget[fx.Node, ValueReady]):
    """Candidates are results of ops, by their nodes."""

    def candidates(self) -> list[fx.Node]:
        return values_of(self.state, self.rule)

    def alive(self, places: Sequence[fx.Node]) -> list[fx.Node]:
        """Each application makes a copy of the graph, in which nodes keep their names."""
        now = {node.name: node for node in self.candidates()}
        return [now[node.name] for node in places if node.name in now]

    def weigh(self, place: fx.Node) -> ValueReady | NoMatch:
        return self._or_reason(lambda: self._planned(place), place)

    def _planned(self, place: fx.Node) -> ValueReady | NoMatch:
        state, site = self.state, _examined(self.state, self.rule, place)
        if isinstance(site, NoMatch):
            return site
        return ValueReady.of(_ValueTrial(state, site, site.made.view))

    def commit(self, stage: str, ready: ValueReady, seconds: float) -> None:
        """The planned model becomes the working one."""
        started = time.perf_counter()
        site, state = ready.site, self.state
        matched = _site(state, site.rule, site.node, site.scope)
        stands_for, bindings = origins(matched), describe(matched)
        state.reset(ready.model)
        state.samples.forget()
        seconds += time.perf_counter() - started
        state.journal.add(
            Applied(
                stage,
                site.rule.label,
                site.name,
                site.rule.place,
                (),
                site.added,
                stands_for,
                ready.before,
                ready.after,
                ready.verdicts,
                bindings,
                seconds,
            )
        )

    def with_one(self, ready: ValueReady) -> tuple[fx.GraphModule, Costs]:
        finish(self.state.module)
        return ready.model, ready.after

    # -- telling -----------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        sites = self.rule.source.all(t.MatchValue)[0].sites
        return f"value at {' or '.join(sites)}"

    def name(self, place: fx.Node) -> str:
        return name_of(place)

    def at(self, places: Sequence[fx.Node], path: str) -> list[fx.Node]:
        wanted = nodes_at(self.state.module.graph.nodes, path)
        return [node for node in places if node in wanted]

    def conditions(self) -> Iterator[Condition]:
        steps = [s for r in self.rule.source.all(t.Rewrite) for s in r.steps]
        return change_conditions(
            self.rule,
            ("memory", "nothing writes into it afterwards, and the same op is not there already"),
            ("ops", f"they keep shape and type: {'; '.join(map(line, steps))}"),
        )

    def rank(self, miss: NoMatch) -> Rank:
        return change_rank(miss)
