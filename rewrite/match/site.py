"""One candidate site of a rule: from a structural match, through uses, shapes and guards, to named
values.

`examine` answers with a `Site` or with a `NoMatch` that says what failed, in the order in which
things are cheap to ask.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, fx

from ...grammar.diagnostics import Label, fail
from ...grammar.tree import tree as t
from ..graph.memory import mutation_between
from ..graph.places import node_at
from ..ops.call import OpCall
from ..rules.binding import GUARDS, OWNERS, SITES, UNLESS, USES, Bindings, NoMatch
from ..rules.pattern import Pattern, PatternOp
from ..rules.rule import CompiledRule
from ..rules.scope import Scope, shown
from ..rules.state import State
from ..torch_internals import order_of
from .match import Search, is_part
from .repeats import foreign_readers, repeats
from .shapes import match_shapes


@dataclass(slots=True, eq=False)
class Site:
    """A match whose guards hold. `calls` stand in graph order.

    nodes: the matched ops and what takes single results out of them, in graph order. gone: those of
    them that the rewrite takes out of the graph, with `removed` as their calls. outputs: the
    matched values that the rewrite defines anew.
    """

    rule: CompiledRule
    bindings: Bindings
    scope: Scope
    calls: list[OpCall]
    nodes: list[fx.Node]
    removed: list[OpCall]
    gone: set[fx.Node]
    outputs: dict[str, fx.Node]

    @property
    def name(self) -> str:
        """The module path of the first matched op: how people call this site."""
        return str(self.calls[0].node.meta.get("site") or self.calls[0].node.name)

    @property
    def repeats(self) -> frozenset[fx.Node]:
        """The nodes of the sites that run the same layers, and that change as this one does."""
        assert self.scope.facts.repeats is not None
        return self.scope.facts.repeats()

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes that the matched ops read from outside, in order of first use."""
        inside = set(self.nodes)
        found = dict.fromkeys(arg for call in self.calls for arg in call.node.all_input_nodes)
        return [node for node in found if node not in inside and node.op != "get_attr"]


def with_parts(call: OpCall) -> list[fx.Node]:
    """The node of a call and, if it has several results, the nodes that take them out."""
    if call.op.results == 1:
        return [call.node]
    return [call.node, *(user for user in call.node.users if is_part(user))]


def examine(
    state: State, rule: CompiledRule, bindings: Bindings, alike: frozenset[fx.Node] | None = None
) -> Site | NoMatch:
    """The site of a structural match, or why it is none. alike: others that may read its weights;
    by default those of the sites that repeat it.
    """
    site = _site(state, rule, bindings)
    if alike is not None:
        site.scope.facts.repeats = lambda: alike
    return (
        _uses(site) or _effects(state, site) or _named(state, site) or _clauses(state, site) or site
    )


def examine_cheaply(state: State, rule: CompiledRule, bindings: Bindings) -> NoMatch | None:
    """Why a structural match is no site, as far as that can be said before the first `let`."""
    site = _site(state, rule, bindings)
    asked = _uses(site) or _effects(state, site) or _named(state, site)
    return asked or _guards_hold(state, site, before_let=True)


def _site(state: State, rule: CompiledRule, bindings: Bindings) -> Site:
    names = {**rule.args, **bindings.values, **handles(rule.pattern, bindings)}
    calls = sorted(bindings.calls(), key=_place_of)
    kept = [bindings.ops[i].node for i in rule.pattern.shared if i in bindings.ops]
    removed = [call for call in calls if call.node not in kept] if kept else calls
    nodes = [node for call in calls for node in with_parts(call)]
    if len(nodes) > len(calls):
        nodes = sorted(dict.fromkeys(nodes), key=order_of)
    gone = {node for call in removed for node in with_parts(call)}
    outputs = {n: v for n, v in bindings.values.items() if n in rule.outputs}
    scope = state.scope(names)
    scope.facts.repeats = cache(lambda: _repeats(state, rule, bindings))
    return Site(rule, bindings, scope, calls, nodes, removed, gone, outputs)


def _repeats(state: State, rule: CompiledRule, bindings: Bindings) -> frozenset[fx.Node]:
    """Approximate rules compute with what a site sees, which differs from site to site."""
    if rule.kind != "exact":
        return frozenset()

    def is_site(other: Bindings, readers: frozenset[fx.Node]) -> bool:
        return isinstance(examine(state, rule, other, readers), Site)

    return repeats(state, Search(rule.pattern, state.view), bindings, is_site)


def _place_of(call: OpCall) -> tuple[int, ...]:
    return order_of(call.node)


def handles(pattern: Pattern, bindings: Bindings) -> dict[str, Any]:
    """What `as c` names: a call, the calls of a chain, none where an optional op is absent."""
    found: dict[str, Any] = {}
    for op in pattern.ops:
        if op.source.handle is not None:
            absent = () if op.repeat == "*" else None
            chain = tuple(bindings.chains.get(op.index, ())) or absent
            found[op.source.handle.text] = bindings.ops.get(op.index, chain)
    return found


# -- structure around the match --------------------------------------------------------------------


def _uses(site: Site) -> NoMatch | None:
    """A value that disappears may have no reader outside the match."""
    inside = set(site.nodes)
    outputs = set(site.outputs.values())
    for op in site.rule.pattern.ops:
        if op.index not in site.bindings.ops or op.source.shared:
            continue
        for value in with_parts(site.bindings.ops[op.index]):
            other = next((user for user in value.users if user not in inside), None)
            if other is not None and value not in outputs:
                return _also_read(site, op, value, other)
    return _chain_uses(site, outputs, inside) if site.bindings.chains else None


def _also_read(site: Site, op: PatternOp, value: fx.Node, other: fx.Node) -> NoMatch:
    name = next((n for n, bound in site.bindings.values.items() if bound is value), value.name)
    text = f"`{name}` is also read by {_who(other)}"
    return NoMatch(USES, 0, lambda: text, op.source.span, value, "R008")


def _chain_uses(site: Site, outputs: set[fx.Node], inside: set[fx.Node]) -> NoMatch | None:
    """Links of a chain have one reader each by construction; only its last value can have
    others.
    """
    for op in site.rule.pattern.ops:
        chain = site.bindings.chains.get(op.index)
        if not chain or op.source.shared or chain[-1].node in outputs:
            continue
        last = chain[-1].node
        other = next((user for user in last.users if user not in inside), None)
        if other is not None:
            text = f"`{op.targets[0]}` is also read by {_who(other)}"
            return NoMatch(USES, 0, lambda said=text: said, op.source.span, last, "R008")
    return None


def _who(node: fx.Node) -> str:
    return (
        "the model's output" if node.op == "output" else (str(node.meta.get("site")) or node.name)
    )


def _effects(state: State, site: Site) -> NoMatch | None:
    other = mutation_between(state.view, state.mutations, site.nodes)
    if other is None:
        return None
    return NoMatch(
        USES,
        1,
        lambda: f"{other.name} changes a tensor in place between the matched ops",
        None,
        other,
    )


# -- names -----------------------------------------------------------------------------------------


def _named(state: State, site: Site) -> NoMatch | None:
    """Binds dimensions and attributes, then asks for the place and for `unless`."""
    rule = site.rule
    misfit = match_shapes(state, site.scope, site.bindings, rule.pattern)
    if misfit is not None:
        return misfit
    return _place(site) or _unless(state, site)


def _place(site: Site) -> NoMatch | None:
    rule = site.rule
    if rule.at is not None and not any(_fits(call, rule.at) for call in site.calls):
        return NoMatch(SITES, 0, lambda: f'outside `at "{rule.at}"`', None, site.calls[0].node)
    for clause in rule.pattern.sites:
        miss = _outside(site.scope, clause)
        if miss is not None:
            return miss
    return None


def _outside(scope: Scope, clause: t.SitePattern) -> NoMatch | None:
    """What an absent optional op or an empty chain names is nowhere, and so in every place."""
    named = scope.names[clause.name.text]
    for call in named if isinstance(named, tuple) else (named,):
        if call is not None and not _fits(call, clause.glob):
            return NoMatch(
                SITES,
                1,
                lambda c=call: f"{shown(c)} is outside `{clause.glob}`",
                clause.span,
                _node_of(call),
            )
    return None


def _fits(value: Any, glob: str) -> bool:
    """Whether what a pattern name stands for lies at the glob."""
    node = _node_of(value)
    return node is not None and node_at(node, glob)


def _node_of(value: Any) -> fx.Node | None:
    node = value.node if isinstance(value, OpCall) else value
    return node if isinstance(node, fx.Node) else None


def _unless(state: State, site: Site) -> NoMatch | None:
    for number, (pattern, steps) in enumerate(site.rule.unless):
        search = Search(pattern, state.view)
        for bound in search.complete(steps, 0, site.bindings.copy()):
            scope = site.scope.child({**bound.values, **handles(pattern, bound)})
            misfit = match_shapes(state, scope, bound, pattern)
            if misfit is None and not any(_outside(scope, clause) for clause in pattern.sites):
                span = site.rule.source.all(t.Unless)[number].span
                return NoMatch(
                    UNLESS,
                    number,
                    lambda: "the `unless` pattern holds here",
                    span,
                    site.calls[0].node,
                )
    return None


# -- where and let ---------------------------------------------------------------------------------


def _clauses(state: State, site: Site) -> NoMatch | None:
    return _guards_hold(state, site) or owners_miss(state, site)


def _guards_hold(state: State, site: Site, *, before_let: bool = False) -> NoMatch | None:
    """Guards and bindings in textual order, so that cheap questions come before an SVD."""
    step = 0
    for clause in site.rule.source.all(t.Where, t.Let):
        if isinstance(clause, t.Let):
            if before_let:
                return None
            if state.verify and site.rule.measures:
                # Now: what `let` computes is large, and so is what running the model takes.
                state.samples.seen(state.module, site.inputs)
            bind_all(site.scope, clause.bindings)
            continue
        for guard in clause.guards:
            step += 1
            if isinstance(guard, t.Guard) and not holds(site.scope, guard.condition):
                return _guard_miss(site, guard, step)
    return None


def holds(scope: Scope, condition: t.Expr) -> bool:
    """Raises T001 for an array: nothing says whether one of its numbers counts or all."""
    value = scope.number(condition)
    if isinstance(value, Tensor) and value.numel() != 1:
        place = Label(condition.span, f"{list(value.shape)} numbers")
        hint = "say what of it counts: `min(...) > 0`, `max(...) < 1`"
        raise fail("T001", "a guard is true or false, and this is an array", place, help=hint)
    return bool(value)


def bind_all(scope: Scope, bindings: Iterable[t.Binding]) -> None:
    """Evaluates `let` bindings into the scope."""
    for binding in bindings:
        value = scope.value(binding.value)
        names = [word.text for word in binding.targets]
        scope.names.update(
            zip(names, value, strict=True) if len(names) > 1 else [(names[0], value)]
        )


def _guard_miss(site: Site, guard: t.Guard, step: int) -> NoMatch:
    """The message is built now: scopes are cheap to ask while the weights they name still exist."""
    text = guard.reason
    said = (
        site.scope.interpolate(text, site.rule.message)
        if text
        else f"`{guard.condition.span.text}` does not hold"
    )
    return NoMatch(GUARDS, step, lambda: said, guard.span, site.calls[0].node)


def owners_miss(state: State, site: Site) -> NoMatch | None:
    """Weights that a rule reads into new ones, or changes, must have this site as their only
    reader.
    """
    if site.rule.on_shared == "clone":
        return None
    for path, ref in site.scope.read.items():
        others = foreign_readers(site.scope, ref)
        if others:
            who = ", ".join(sorted({node.meta.get("site") or node.name for node in others}))
            return NoMatch(
                OWNERS,
                0,
                lambda p=path, w=who: f"`{p}` is also used by {w}",
                site.rule.source.name.span,
                ref.call.node,
            )
    return None
