"""Near-misses of rules over parameters: parameters at which one guard fails and no other, and
models in which the rule applied, with one more thing that sees the parameter's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx, nn

from ...ops.call import tensor_at
from ...targets.params import ParamTarget
from ..choices.source import Replayed
from ..dims.models import Graph
from ..near_miss import ENOUGH, NearMiss, NearResult
from ..one_guard import alone, judge
from ..subject import Subject
from ..trial import Outcome
from ..whole import add_output, drawn_model, graph_state, said_at
from .trial import try_param

Edit = Callable[[fx.GraphModule, str], fx.Node]
"""Adds something that sees the memory at a path, and gives it as a node."""


def param_near(subject: Subject, tapes: Sequence[Sequence[int]], start: int) -> list[NearResult]:
    """All near-misses. `tapes` are of models in which the rule fires."""
    edited = (_edited(subject, tapes, *edit) for edit in EDITS)
    return [*alone(subject, start, drawn_model), *edited]


def _written(module: fx.GraphModule, path: str) -> fx.Node:
    """The memory is written to when the model runs: the same numbers."""
    held = module.graph.get_attr(path)
    return module.graph.call_method("mul_", (held, 1))


def _seen_flat(module: fx.GraphModule, path: str) -> fx.Node:
    """Another parameter is a view of the same memory, in another shape."""
    flat = tensor_at(module, path).detach().view(-1)
    module.register_parameter("flat", nn.Parameter(flat))
    return module.graph.get_attr("flat")


def _tied(module: fx.GraphModule, path: str) -> fx.Node:
    """The very parameter is one more parameter of the model."""
    module.twin = tensor_at(module, path)
    return module.graph.get_attr("twin")


EDITS: tuple[tuple[str, Edit, bool], ...] = (
    ("the model writes into it", _written, False),
    ("a view in another shape shares its memory", _seen_flat, False),
    ("it is tied once more", _tied, True),
)
"""What is added to a model in which the rule fires, and whether it may fire then."""


def _edited(
    subject: Subject, tapes: Sequence[Sequence[int]], name: str, edit: Edit, fires: bool
) -> NearResult:
    result = NearResult(NearMiss(name, frozenset()))
    for tape in tapes:
        if result.reached >= ENOUGH:
            break
        found = _spoilt(subject, tape, edit)
        if found is not None:
            judge(result, found, fires)
    return result


def _spoilt(subject: Subject, tape: Sequence[int], edit: Edit) -> Outcome | None:
    """What becomes of the first parameter at which the rule fires, in the edited model."""
    rule, graph = drawn_model(subject, Replayed(tape))
    target = ParamTarget(graph_state(subject, graph), rule)
    fit = (p for p in target.candidates() if p.ref.tensor.is_contiguous())
    name = next((param.name for param in fit if not said_at(target, param)), None)
    if name is None:
        return None
    rule, again = drawn_model(subject, Replayed(tape))
    _add(again, name, edit)
    changed = ParamTarget(graph_state(subject, again), rule)
    twin = next(param for param in changed.candidates() if param.name == name)
    return try_param(changed, twin, again.seed)


def _add(graph: Graph, path: str, edit: Edit) -> None:
    """What is added is one more output."""
    traced = graph.module.graph
    first, out = next(iter(traced.nodes)), traced.output_node()
    while first.op == "placeholder":
        first = first.next
    with traced.inserting_before(first):
        extra = edit(graph.module, path)
    with traced.inserting_before(out):
        total = traced.call_method("sum", (extra,))
    add_output(graph, total, "edit")
