"""Near-misses of rules over dimensions: dimensions at which one guard fails and no other, and
models in which the rule applied, with one more reader of the dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ....grammar.diagnostics import LissomError
from ....grammar.tree import tree as t
from ...channels.classes import DimClass
from ...channels.flow import Flow
from ...channels.labels import axes_of
from ...ops.spec import spec_of
from ...rules.binding import NoMatch
from ...rules.rule import CompiledRule, compile_rule
from ...rules.state import State
from ...targets.features import FeatureTarget
from ..choices.source import Replayed, Rolled, Unsuitable
from ..mutants.mutate import RAISED
from ..near_miss import ATTEMPTS, ENOUGH, NearMiss, NearResult
from ..trial import BAD, FIRED, NOISY, VACUOUS, Outcome, Subject, condition
from .models import Graph
from .trial import Real, dim_model, graph_state, try_dim


def dim_near(subject: Subject, tapes: Sequence[Sequence[int]], start: int) -> list[NearResult]:
    """All near-misses. `tapes` are of models in which the rule fires."""
    return [*_alone(subject, start), *(_read(subject, tapes, *reader) for reader in READERS)]


# -- one guard -------------------------------------------------------------------------------------


def _alone(subject: Subject, start: int) -> list[NearResult]:
    """For each guard: dimensions at which it fails, while the rule without it has none that does.
    Models in which the rule does not fire have them too.
    """
    guards = [g for w in subject.source.all(t.Where) for g in w.guards if isinstance(g, t.Guard)]
    texts = [" ".join(guard.span.text.split()) for guard in guards]
    found = {text: NearResult(NearMiss(text, frozenset({text}))) for text in texts}
    without = {
        text: _without(subject.source, guard) for text, guard in zip(texts, guards, strict=True)
    }
    for number in range(ATTEMPTS):
        if all(result.reached >= ENOUGH for result in found.values()):
            break
        try:
            rule, graph = dim_model(subject, Rolled(f"{start}/near/{number}"))
        except Unsuitable:
            continue
        for said in _alone_in(graph_state(subject, graph), rule, without):
            found[said].silent += 1
            found[said].conditions[said] += 1
    return list(found.values())


def _without(source: t.Rule, guard: t.Guard) -> t.Rule:
    """The rule without one guard."""

    def kept(item: Any) -> Any:
        if not isinstance(item, t.Where):
            return item
        return t.replace(item, guards=tuple(g for g in item.guards if g is not guard))

    return t.replace(source, clauses=tuple(map(kept, source.clauses)))


def _alone_in(state: State, rule: CompiledRule, without: dict[str, t.Rule]) -> Iterator[str]:
    target = FeatureTarget(state, rule)
    bare = {
        said: FeatureTarget(state, compile_rule(source, rule.given))
        for said, source in without.items()
    }
    for dim in target.candidates():
        said = _said(target, dim)
        if said in without and _said(bare[said], dim) not in without:
            yield said


def _said(target: FeatureTarget, dim: DimClass) -> str:
    """The guard that says no, or a code, or nothing where the rule applies."""
    try:
        found = target.prepare(dim)
    except LissomError as error:
        return error.diagnostics[0].code
    except RAISED as error:  # what comes behind a guard may need it
        return type(error).__name__
    return condition(found) if isinstance(found, NoMatch) else ""


# -- one more reader -------------------------------------------------------------------------------

Reader = Callable[[fx.Graph, fx.Node, int], fx.Node]


def _given_back(graph: fx.Graph, value: fx.Node, axis: int) -> fx.Node:
    return value


def _mixed(graph: fx.Graph, value: fx.Node, axis: int) -> fx.Node:
    return graph.call_method("sum", (graph.call_function(torch.cumprod, (value, axis)),))


def _sorted(graph: fx.Graph, value: fx.Node, axis: int) -> fx.Node:
    ordered = graph.call_function(torch.msort, (graph.call_method("movedim", (value, axis, 0)),))
    return graph.call_method("select", (ordered, 0, 0))


def _summed(graph: fx.Graph, value: fx.Node, axis: int) -> fx.Node:
    return graph.call_method("sum", (value, axis))


READERS: tuple[tuple[str, Reader, bool], ...] = (
    ("the dimension is returned", _given_back, False),
    ("an op without a rule for features reads it", _mixed, False),
    ("its order depends on the data", _sorted, False),
    ("one more sum over it", _summed, True),
)
"""What is added to a model in which the rule fires, and whether it may fire then."""


def _read(
    subject: Subject, tapes: Sequence[Sequence[int]], name: str, reader: Reader, fires: bool
) -> NearResult:
    """The rule at a dimension that one more op reads."""
    result = NearResult(NearMiss(name, frozenset()))
    for tape in tapes:
        if result.reached >= ENOUGH:
            break
        found = _spoilt(subject, tape, reader)
        if found is not None:
            _judge(result, found, fires)
    return result


def _judge(result: NearResult, outcome: Outcome, fires: bool) -> None:
    """Nothing but the reader is new, so whatever keeps the rule silent comes from it."""
    applied = outcome.kind in (FIRED, VACUOUS)
    if outcome.kind in BAD:
        result.wrong.append(outcome)
    elif applied and not fires:
        result.wrong.append(Outcome(NOISY, result.near.name, "fired"))
    elif applied:
        result.equal += 1
    else:
        result.silent += 1
        result.conditions[outcome.condition] += 1


def _spoilt(subject: Subject, tape: Sequence[int], reader: Reader) -> Outcome | None:
    """What becomes of a dimension at which the rule fires, in the model with one more reader; none
    where no value carries such a dimension along one axis.
    """
    rule, graph = dim_model(subject, Replayed(tape))
    state = graph_state(subject, graph)
    target = FeatureTarget(state, rule)
    for dim in target.candidates():
        carrier = _carrier(state.features(), dim)
        if carrier is None or _said(target, dim):
            continue
        rule, again = dim_model(subject, Replayed(tape))
        _add(again, *carrier, reader)
        changed = FeatureTarget(graph_state(subject, again), rule)
        twins = (d for d in changed.candidates() if d.places[0] == dim.places[0])
        twin = next((d for d in twins if d.size == dim.size), None)
        return None if twin is None else try_dim(changed, twin, again.seed)
    return None


def _carrier(flow: Flow, dim: DimClass) -> tuple[str, int] | None:
    """A value, by name, and the axis of it that carries the whole dimension."""
    wanted = set(dim.leaves)
    for node, results in flow.values.items():
        if node.op in ("placeholder", "get_attr", "output") or len(results) != 1:
            continue
        for track in results[0]:
            axes = axes_of(track)
            leaves = {
                leaf for a in track.reshape(-1).tolist() if a for leaf in flow.atoms.leaves(a)
            }
            if len(axes) == 1 and wanted <= leaves:
                return node.name, axes[0]
    return None


def _add(graph: Graph, name: str, axis: int, reader: Reader) -> None:
    """One more op, and its result is one more output."""
    nodes = graph.module.graph.nodes
    value, out = (
        next(n for n in nodes if n.name == name),
        next(n for n in nodes if n.op == "output"),
    )
    with graph.module.graph.inserting_before(out):
        extra = reader(graph.module.graph, value, axis)
    given = out.args[0]
    out.args = ((*given, extra) if isinstance(given, tuple) else (given, extra),)
    graph.module.recompile()
    runner = Real(graph.module)
    with torch.no_grad():
        runner.run(*graph.args)
    for node in nodes:
        if "val" not in node.meta:
            node.meta.update(val=spec_of(runner.env[node]), site="", step="reader")
