"""Near-misses of rules over dimensions: dimensions at which one guard fails and no other, and
models in which the rule applied, with one more reader of the dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from ...channels.classes import DimClass
from ...channels.flow import Flow
from ...channels.labels import axes_of
from ...targets.features import FeatureTarget
from ..choices.source import Replayed
from ..near_miss import ENOUGH, NearMiss, NearResult
from ..one_guard import alone, judge
from ..subject import Subject
from ..trial import Outcome
from ..whole import add_output, graph_state, said_at
from .models import Graph
from .trial import dim_model, try_dim


def dim_near(subject: Subject, tapes: Sequence[Sequence[int]], start: int) -> list[NearResult]:
    """All near-misses. `tapes` are of models in which the rule fires."""
    readers = (_read(subject, tapes, *reader) for reader in READERS)
    return [*alone(subject, start, dim_model), *readers]


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
            judge(result, found, fires)
    return result


def _spoilt(subject: Subject, tape: Sequence[int], reader: Reader) -> Outcome | None:
    """What becomes of a dimension at which the rule fires, in the model with one more reader; none
    where no value carries such a dimension along one axis.
    """
    rule, graph = dim_model(subject, Replayed(tape))
    state = graph_state(subject, graph)
    target = FeatureTarget(state, rule)
    for dim in target.candidates():
        carrier = _carrier(state.features(), dim)
        if carrier is None or said_at(target, dim):
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
    traced = graph.module.graph
    value = next(n for n in traced.nodes if n.name == name)
    with traced.inserting_before(traced.output_node()):
        extra = reader(traced, value, axis)
    add_output(graph, extra, "reader")
