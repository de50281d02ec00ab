"""Near-misses of rules over values: values at which one guard fails and no other, and models in
which the rule applied, with one more op that writes into the value's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ...targets.values import ValueTarget
from ..choices.source import Replayed
from ..dims.models import Graph
from ..near_miss import ENOUGH, NearMiss, NearResult
from ..one_guard import alone, judge
from ..subject import Subject
from ..trial import Outcome
from ..whole import drawn_model, graph_state, said_at
from .trial import try_value

WRITTEN = "the model writes into it afterwards"


def value_near(subject: Subject, tapes: Sequence[Sequence[int]], start: int) -> list[NearResult]:
    """All near-misses. `tapes` are of models in which the rule fires."""
    return [*alone(subject, start, drawn_model), _written(subject, tapes)]


def _written(subject: Subject, tapes: Sequence[Sequence[int]]) -> NearResult:
    result = NearResult(NearMiss(WRITTEN, frozenset()))
    for tape in tapes:
        if result.reached >= ENOUGH:
            break
        found = _spoilt(subject, tape)
        if found is not None:
            judge(result, found, False)
    return result


def _spoilt(subject: Subject, tape: Sequence[int]) -> Outcome | None:
    """What becomes of the first value at which the rule fires, once something writes into it."""
    rule, graph = drawn_model(subject, Replayed(tape))
    target = ValueTarget(graph_state(subject, graph), rule)
    name = next((n.name for n in target.candidates() if not said_at(target, n)), None)
    if name is None:
        return None
    rule, again = drawn_model(subject, Replayed(tape))
    node = next(n for n in again.module.graph.nodes if n.name == name)
    _write(again, node)
    return try_value(ValueTarget(graph_state(subject, again), rule), node, again.seed)


def _write(graph: Graph, node: fx.Node) -> None:
    """Before the model ends, the value is multiplied in place; it stays what it was."""
    with graph.module.graph.inserting_before(graph.module.graph.output_node()):
        made = graph.module.graph.call_method("mul_", (node, 1))
    made.meta.update(val=node.meta["val"], site="", step="edit")
    graph.module.recompile()
