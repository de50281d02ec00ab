"""One candidate site of a rule: from a structural match, through uses, shapes and guards, to named values.

`examine` answers with a `Site` or with a `Miss` that says what failed, in the order in which things are cheap to ask.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import fx

from ..grammar import tree as t
from ..grammar.diagnostics import Span
from .effects import mutation_between
from .evaluate import ParamRef, Scope, shown
from .match import GUARDS, OWNERS, SHAPES, SITES, UNLESS, USES, Bindings, Miss, Search
from .rule import Rule
from .shape_match import match_shapes
from .state import State
from .call import Call


@dataclass(slots=True)
class Site:
    """A match whose guards hold. `calls` stand in graph order."""

    rule: Rule
    bindings: Bindings
    scope: Scope
    calls: list[Call]
    removed: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The module path of the first matched op: how people call this site."""
        return str(self.calls[0].node.meta.get("site") or self.calls[0].node.name)

    @property
    def outputs(self) -> dict[str, fx.Node]:
        """The matched values that the rewrite defines anew."""
        return {n: v for n, v in self.bindings.values.items() if n in self.rule.outputs}

    @property
    def inputs(self) -> list[fx.Node]:
        """The nodes that the matched ops read from outside, in order of first use."""
        inside = {call.node for call in self.calls}
        found = dict.fromkeys(arg for call in self.calls for arg in call.node.all_input_nodes)
        return [node for node in found if node not in inside and node.op != "get_attr" and not _part_of(node, inside)]


def _part_of(node: fx.Node, inside: set[fx.Node]) -> bool:
    return node.target is operator.getitem and node.args[0] in inside


def examine(state: State, rule: Rule, bindings: Bindings) -> Site | Miss:
    """The site of a structural match, or why it is none."""
    site = _site(state, rule, bindings)
    return _uses(site) or _effects(state, site) or _named(state, site) or _clauses(state, site) or site


def _site(state: State, rule: Rule, bindings: Bindings) -> Site:
    names = {**rule.args, **bindings.values}
    for op in rule.pattern.ops:
        handle, call = op.source.handle, bindings.ops.get(op.index)
        if handle is not None and call is not None:
            names[handle.text] = call
    calls = sorted(bindings.calls(), key=lambda call: call.node._sort_key)
    kept = {bindings.ops[op.index].node for op in rule.pattern.ops if op.source.shared and op.index in bindings.ops}
    removed = [call for call in calls if call.node not in kept]
    return Site(rule, bindings, state.scope(names), calls, removed)


# -- structure around the match ------------------------------------------------------------------------------------


def _uses(site: Site) -> Miss | None:
    """A value that disappears may have no reader outside the match."""
    inside = {call.node for call in site.calls}
    outputs = set(site.outputs.values())
    for op in site.rule.pattern.ops:
        for name in op.targets:
            value = site.bindings.values.get(name)
            if op.source.shared or not isinstance(value, fx.Node) or value in outputs or not _made_here(value, inside):
                continue
            other = next((user for user in value.users if user not in inside), None)
            if other is not None:
                span = op.source.span
                return Miss(USES, 0, lambda n=name, o=other: f"`{n}` is also read by {_who(o)}", span, value, "M-uses")
    return None


def _made_here(value: fx.Node, inside: set[fx.Node]) -> bool:
    return value in inside or _part_of(value, inside)


def _who(node: fx.Node) -> str:
    return "the model's output" if node.op == "output" else (str(node.meta.get("site")) or node.name)


def _effects(state: State, site: Site) -> Miss | None:
    first, last = site.calls[0].node, site.calls[-1].node
    other = mutation_between(state.mutations, first, last)
    if other is None:
        return None
    return Miss(USES, 1, lambda: f"{other.name} changes a tensor in place between the matched ops", None, other)


# -- names ---------------------------------------------------------------------------------------------------------


def _named(state: State, site: Site) -> Miss | None:
    """Binds dimensions and attributes, then asks for the place and for `unless`."""
    rule = site.rule
    misfit = match_shapes(state, site.scope, site.bindings, rule.pattern)
    if misfit is not None:
        return misfit
    return _place(site) or _unless(state, site)


def _place(site: Site) -> Miss | None:
    rule = site.rule
    if rule.at is not None and not any(_fits(call, rule.at) for call in site.calls):
        return Miss(SITES, 0, lambda: f"outside `at \"{rule.at}\"`", None, site.calls[0].node)
    for clause in rule.pattern.sites:
        call = site.scope.names[clause.name.text]
        if not isinstance(call, Call) or not _fits(call, clause.glob):
            return Miss(SITES, 1, lambda c=call: f"{shown(c)} is outside", clause.span, None)
    return None


def _fits(call: Call, glob: str) -> bool:
    """A glob names a module path or any module above it."""
    site = str(call.node.meta.get("site", ""))
    return fnmatchcase(site, glob) or fnmatchcase(site, glob + ".*")


def _unless(state: State, site: Site) -> Miss | None:
    for number, (pattern, steps) in enumerate(site.rule.unless):
        search = Search(pattern, state.view)
        for bound in search.complete(steps, 0, site.bindings.copy()):
            found = Bindings(bound.values, {k: v for k, v in bound.ops.items()}, {}, {})
            scope = site.scope.child({})
            if match_shapes(state, scope, found, pattern) is None:
                span = site.rule.source.all(t.Unless)[number].span
                return Miss(UNLESS, number, lambda: "the `unless` pattern holds here", span, site.calls[0].node)
    return None


# -- where and let -------------------------------------------------------------------------------------------------


def _clauses(state: State, site: Site) -> Miss | None:
    """Guards and bindings in textual order, so that cheap questions come before an SVD."""
    step = 0
    for clause in site.rule.source.all(t.Where, t.Let):
        if isinstance(clause, t.Let):
            bind_all(site.scope, clause.bindings)
            continue
        for guard in clause.guards:
            step += 1
            if isinstance(guard, t.Guard) and not site.scope.number(guard.condition):
                return _guard_miss(site, guard, step)
    return owners_miss(state, site)


def bind_all(scope: Scope, bindings: Iterable[t.Binding]) -> None:
    """Evaluates `let` bindings into the scope."""
    for binding in bindings:
        value = scope.value(binding.value)
        names = [word.text for word in binding.targets]
        scope.names.update(zip(names, value, strict=True) if len(names) > 1 else [(names[0], value)])


def _guard_miss(site: Site, guard: t.Guard, step: int) -> Miss:
    """The message is built now: scopes are cheap to ask while the weights they name still exist."""
    text = guard.reason
    said = site.scope.interpolate(text, site.rule.message) if text else f"`{guard.condition.span.text}` does not hold"
    return Miss(GUARDS, step, lambda: said, guard.span, site.calls[0].node)


def owners_miss(state: State, site: Site) -> Miss | None:
    """Weights that a rule reads into new ones, or changes, must have this site as their only reader."""
    if site.rule.on_shared == "clone":
        return None
    for path, ref in site.scope.read.items():
        others = foreign_readers(state, ref)
        if others:
            who = ", ".join(sorted({node.meta.get("site") or node.name for node in others}))
            return Miss(OWNERS, 0, lambda p=path, w=who: f"`{p}` is also used by {w}", site.rule.source.name.span, ref.call.node)
    return None


def foreign_readers(state: State, ref: ParamRef) -> list[fx.Node]:
    """Who else reads the storage of a parameter."""
    return [node for node in state.readers(ref.path) if node is not ref.call.node]
