"""Which rewrites are worth their time, given those around them.

A layer in another type of numbers has its values converted. Between two such layers nothing is left
to convert, once exact rules have joined them; at the border it is. So each site is judged with what
it converts towards neighbours that stay as they are, and with what its neighbours would have to
convert if it stayed: all are taken to be rewritten first, and the one that loses most is left,
until none loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from ..apply.engine import VerifiedRewrite
from ..apply.site_time import Edge, edges_of
from ..graph.index import GraphView
from ..measure.latency import Saving
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
    """The rewrites that save no time, in the order in which they were left; `timed` of all says
    what they save among the others. done: the borders of those that were made.
    """
    kept = [ready for ready in waiting if ready.timed is not None and _stands(view, ready)]
    sides = {id(ready): borders(view, ready) for ready in kept}
    left = []
    while kept:
        inside = {node: ready for ready in kept for node in ready.site.nodes}
        free = [b for ready in kept for b in sides[id(ready)] if _is_free(b, inside)]
        free += [border for border in done if _is_free(border, inside)]
        for ready in kept:
            ready.timed = _among(ready, sides[id(ready)], free)
        worst = min(kept, key=_least)
        if _least(worst) > 0:
            break
        kept.remove(worst)
        left.append(worst)
    return left


def _stands(view: GraphView, ready: VerifiedRewrite) -> bool:
    """Whether the site is in the present graph; else it is weighed again when its turn comes."""
    graph = view.root.graph
    return all(node.graph is graph and not is_erased(node) for node in ready.site.nodes)


def _is_free(border: Border, inside: dict[fx.Node, VerifiedRewrite]) -> bool:
    return border.across <= border.made | inside.keys()


def _among(ready: VerifiedRewrite, own: Sequence[Border], free: Sequence[Border]) -> Saving:
    """What it saves: its own conversions that are not free stay; of others those are free because
    it is among what lies across.
    """
    assert ready.timed is not None
    nodes = set(ready.site.nodes)
    paid = sum(border.seconds for border in own if border not in free)
    spared = sum(border.seconds for border in free if nodes & (border.across - border.made))
    return replace(ready.timed, paid=paid, spared=spared)


def _least(ready: VerifiedRewrite) -> float:
    assert ready.timed is not None
    return ready.timed.least
