"""How long a site takes before and after its rewrite: what `order by latency` ranks by.

Both sides become small graphs of their own, of the very calls that the model holds and will hold,
and run in turns on what the site reads when the model runs on its example. What a rewrite puts at
its edges only to change the type of a value (`quantize`, a cast) is told apart: where what lies
around is rewritten as well, exact rules join such steps or take them away (`neighbours.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.emit import Emitted, constant
from ..graph.runs import record
from ..match.site import Site
from ..measure.latency import Saving, Times, node_times, saving_of
from ..ops.runtime_size import RuntimeSize, mapped
from ..ops.spec import TensorSpec
from ..rules.state import State
from .claims import kept
from .planned import Plan, Planned, spec_known
from .run import Env, weights_read
from .verify import free_inputs

SECONDS = 0.25
"""For which both sides of a site take turns."""


def site_time(state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted]) -> Saving:
    """What a verified rewrite saves, with one thread; its edges are in the order of `edges_of`."""
    matched = [node for node in plan.reads if node in site.nodes]
    values = weights_read(state.module, plan.reads, {}, None)
    computed = [*free_inputs(site, plan), *matched]
    values |= record(state.module, computed, state.samples.inputs, "the example")
    inputs = list(values)
    stays = {call.node for call in kept(state, site, plan)}
    old, news = _before(state, site, inputs, stays), _after(plan, emitted, inputs, values)
    args = tuple(values[node] for node in inputs)
    rounds = node_times(old[0], news[0], args, seconds=SECONDS, clock=state.clock)
    edges = [news[1][edge.planned] for edge in edges_of(site, plan)]
    counted = [node for node in news[1].values() if node not in edges]
    pairs = [(_seconds(old[1], was), _seconds(counted, now)) for was, now in rounds]
    return saving_of(pairs, [[_seconds([edge], now) for _, now in rounds] for edge in edges])


def _seconds(nodes: Iterable[fx.Node], times: Times) -> float:
    return sum(times.get(node, 0.0) for node in nodes)


def _before(
    state: State, site: Site, inputs: Iterable[fx.Node], stays: Collection[fx.Node]
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The matched ops as a graph, and those of its nodes that the rewrite takes away."""
    graph, places = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        places[node] = graph.placeholder(node.name)
    for node in site.nodes:
        for held in node.all_input_nodes:
            if held.op == "get_attr" and held not in places:
                places[held] = graph.node_copy(held)
        places[node] = graph.node_copy(node, places.__getitem__)
    graph.output(tuple(places[node] for node in site.outputs.values()))
    counted = [places[node] for node in site.nodes if node not in stays]
    return fx.GraphModule(state.module, graph), counted


def _after(
    plan: Plan, emitted: Mapping[Planned, Emitted], inputs: Iterable[fx.Node], values: Env
) -> tuple[fx.GraphModule, dict[Planned, fx.Node]]:
    """The planned ops as a graph, and the node of each. Sizes that the running model computes are
    numbers here.
    """
    root = fx.GraphModule(nn.Module(), fx.Graph())
    places: dict[Any, fx.Node] = {node: root.graph.placeholder(node.name) for node in inputs}
    end, new = root.graph.output(()), dict[Planned, fx.Node]()

    def placed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(placed, value))
        if isinstance(value, RuntimeSize):
            return value.run(values)
        if isinstance(value, (fx.Node, Planned)):
            return places[value] if value in places else spec_known(value)
        if isinstance(value, Tensor):
            return constant(root, end, f"numbers{len(root._modules)}", value)
        return value

    for number, planned in enumerate(plan.ops):
        made = emitted[planned]
        given = tuple(map(placed, planned.inputs))
        given += (None,) * (len(planned.op.inputs) - len(given))
        attrs = {name: mapped(value, placed) for name, value in made.attrs.items()}
        node = replace(made, inputs=given, attrs=attrs).insert(root, end, f"op{number}")
        places[planned] = new[planned] = node
    return root, new


@dataclass(frozen=True, slots=True)
class Edge:
    """An op that only gives what comes in, or what goes out, in another type of numbers. value: of
    the graph, which it reads or takes the place of. inner: the type inside of the site.
    """

    planned: Planned
    value: fx.Node
    incoming: bool
    inner: torch.dtype


def edges_of(site: Site, plan: Plan) -> list[Edge]:
    """The conversions at the edges of a planned rewrite. What was there before is none: a rule
    whose purpose is to take a conversion away saves it.
    """
    outputs = {plan.outputs[name]: node for name, node in site.outputs.items()}
    found = (_edge(planned, outputs.get(planned)) for planned in plan.ops)
    return [edge for edge in found if edge is not None]


def _edge(planned: Planned, output: fx.Node | None) -> Edge | None:
    read = [value for value in planned.inputs if isinstance(value, (fx.Node, Planned))]
    if len(read) != 1 or planned.params or "elementwise" not in planned.op.traits:
        return None
    specs = spec_known(read[0]), planned.specs[0]
    if not all(isinstance(spec, TensorSpec) and spec.dtype != torch.bool for spec in specs):
        return None
    outer, inner = (spec.dtype for spec in specs)
    if outer != inner and isinstance(read[0], fx.Node):
        return Edge(planned, read[0], True, inner)
    return Edge(planned, output, False, outer) if outer != inner and output is not None else None
