"""Which rewrites are worth their time, given those around them.

A layer in another type of numbers has its values converted. Between two such layers nothing is left
to convert, once exact rules have joined them; at the border it is. So whether a site is worth it
hangs on its neighbours, and all are decided together: the sites are split so that what they take,
and what is converted between both parts, is least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ..apply.engine import VerifiedRewrite
from ..apply.site_time import Edge, edges_of
from ..graph.index import GraphView
from ..measure.latency import Saving, least_of
from ..ops.spec import TensorSpec
from ..torch_internals import is_erased

HANDS_ON = frozenset({"unrounded", "movement", "pooling", "additive", "selection"})
"""Traits of ops without weights between two sites that join all the same."""


@dataclass(frozen=True, slots=True)
class Border:
    """A conversion at an edge of a site. across: the nodes that it separates the site from. made:
    those of them that compute in its type already.
    """

    seconds: float
    across: frozenset[fx.Node]
    made: frozenset[fx.Node]


def borders(view: GraphView, ready: VerifiedRewrite) -> list[Border]:
    """Those of a rewrite whose time was measured; none of one that was let go."""
    if ready.timed is None or not ready.held:
        return []
    found = edges_of(ready.site, ready.plan)
    return [_border(view, *pair) for pair in zip(found, ready.timed.edges, strict=True)]


def _border(view: GraphView, edge: Edge, seconds: float) -> Border:
    if is_erased(edge.value):  # what computed it was rewritten
        return Border(seconds, frozenset(), frozenset())
    across = _across(view, edge)
    made = frozenset(node for node in across if _computes_in(node, edge.inner))
    return Border(seconds, across, made)


def _across(view: GraphView, edge: Edge) -> frozenset[fx.Node]:
    """What computes a value that comes in, or reads one that goes out, behind all that only hands
    numbers on.
    """
    found, waiting = set[fx.Node](), [edge.value] if edge.incoming else [*edge.value.users]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        further = [*(node.all_input_nodes if edge.incoming else node.users)]
        if not further or not _hands_on(view, node):
            found.add(node)
            continue
        waiting += [other for other in further if other not in seen]
        seen.update(further)
    return frozenset(found)


def _hands_on(view: GraphView, node: fx.Node) -> bool:
    call = view.call(node)
    return call is not None and not call.op.params and not HANDS_ON.isdisjoint(call.op.traits)


def _computes_in(node: fx.Node, inner: torch.dtype) -> bool:
    """Whether a node reads, or gives, numbers of this type."""
    return any(_dtype(other) == inner for other in (node, *node.all_input_nodes))


def _dtype(node: fx.Node) -> torch.dtype | None:
    spec = node.meta.get("val")
    return spec.dtype if isinstance(spec, TensorSpec) else None


def losers(
    view: GraphView, waiting: Sequence[VerifiedRewrite], done: Sequence[Border]
) -> list[VerifiedRewrite]:
    """The rewrites that do not belong to the best choice, in their order; `timed` of all says what
    each saves beside those that do. done: the borders of rewrites that were made.
    """
    known = [ready for ready in waiting if ready.timed is not None and _stands(view, ready)]
    sides = [borders(view, ready) for ready in known]
    owner = {node: number for number, ready in enumerate(known) for node in ready.site.nodes}
    chosen = _best_choice(list(map(_gain, known)), sides, done, owner)
    for number, ready in enumerate(known):
        inside = {node for node, other in owner.items() if other == number or other in chosen}
        there = [b for other in chosen - {number} for b in sides[other]] + list(done)
        ready.timed = _among(ready, sides[number], there, inside)
    return [ready for number, ready in enumerate(known) if number not in chosen]


SOURCE, SINK = "rewritten", "as it is"
NANOSECONDS = 1e9


def _best_choice(
    gains: Sequence[float],
    sides: Sequence[Sequence[Border]],
    done: Sequence[Border],
    owner: Mapping[fx.Node, int],
) -> set[int]:
    """The set of sites that costs least together: a minimum cut. A site that is left costs what it
    would have gained, one that is chosen what it loses, and a border that has a site on one side
    only its conversion. What is as good either way is left.
    """
    import networkx as nx  # 11 MB and 0.2 s, for programs that ask for it

    graph: Any = nx.DiGraph()
    graph.add_nodes_from((SOURCE, SINK))
    for number, gain in enumerate(gains):
        loss = 1 - math.floor(gain * NANOSECONDS)
        between = (number, SINK) if loss > 0 else (SOURCE, number)
        graph.add_edge(*between, capacity=abs(loss))
    made: list[tuple[Any, Border]] = [(SOURCE, border) for border in done]
    made += [(number, border) for number, own in enumerate(sides) for border in own]
    for number, (site, border) in enumerate(made):
        beyond = {owner.get(node, SINK) for node in border.across - border.made}
        if beyond:
            place = ("border", number)
            graph.add_edge(site, place, capacity=math.ceil(border.seconds * NANOSECONDS))
            for other in beyond:
                graph.add_edge(place, other)  # without a bound
    _, (chosen, _) = nx.minimum_cut(graph, SOURCE, SINK)
    return {node for node in chosen if isinstance(node, int)}


def _gain(ready: VerifiedRewrite) -> float:
    """What the site saves for itself."""
    assert ready.timed is not None
    return least_of(ready.timed.rounds)


def _stands(view: GraphView, ready: VerifiedRewrite) -> bool:
    """Whether the site is in the present graph; else it is weighed again when its turn comes."""
    graph = view.root.graph
    return all(node.graph is graph and not is_erased(node) for node in ready.site.nodes)


def _among(
    ready: VerifiedRewrite, own: Sequence[Border], others: Sequence[Border], inside: set[fx.Node]
) -> Saving:
    """What it saves: its conversions towards what is not `inside` stay; of others those go that
    only it keeps.
    """
    assert ready.timed is not None
    nodes = set(ready.site.nodes)
    paid = sum(border.seconds for border in own if not border.across <= border.made | inside)
    free = (border for border in others if border.across <= border.made | inside)
    spared = sum(border.seconds for border in free if nodes & (border.across - border.made))
    return replace(ready.timed, paid=paid, spared=spared)
