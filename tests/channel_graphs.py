"""Random cuts of random models, judged by the masked model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import fx

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.channels.analyse import analyse
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.flow import Flow
from lissom.rewrite.channels.masked import masked
from lissom.rewrite.channels.update_after_cut import cut_and_carry
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.measure.compare import distance
from lissom.rewrite.proving.choices.source import ChoiceSource, Recorded, Rolled
from lissom.rewrite.proving.dims.models import Graph, drawn
from lissom.rewrite.proving.dims.trial import unties
from lissom.rewrite.proving.whole import misdescribed

from .cutting import free, results

TOLERANCE = 1e-10
"""Relative, in float64."""


@dataclass
class Tried:
    """What random cuts of one model showed. counts: cuts, refusals and the like. steps: those that
    a cut touched. refused: what LissomErrors said. wrong: mistakes.
    """

    counts: Counter[str] = field(default_factory=Counter)
    steps: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


# -- judging ---------------------------------------------------------------------------------------


def some(source: ChoiceSource, flow: Flow) -> list[int]:
    """Leaves to remove: about half of each of some classes, one of each stays at least."""
    dims = free(flow)
    chosen = [dim for dim in dims if source.chance(60)] or dims
    removed = []
    for dim in chosen:
        leaves = list(dim.leaves)
        for _ in range(max(1, dim.size // 2)):
            removed.append(leaves.pop(source.integer(0, len(leaves) - 1)))
    return removed


def try_cut(
    graph: Graph, flow: Flow, source: ChoiceSource, tried: Tried, again: bool = True
) -> None:
    """One random cut, and one of its result, analysed anew or with what is known of the first."""
    removed = some(source, flow)
    tried.counts["nothing to cut"] += not removed
    if not removed:
        return
    state = {k: v.clone() for k, v in graph.module.state_dict(keep_vars=True).items()}
    code = graph.module.code
    module = _cut(flow, removed, tried)
    if module is None:
        return
    now = graph.module.state_dict()
    if code != graph.module.code or any(not torch.equal(v, now[k]) for k, v in state.items()):
        tried.wrong.append("the original changed")
    tried.wrong += _differences(flow, module, removed, graph, tried)
    tried.steps |= _touched(graph.module, module)
    tried.wrong += unties(flow, module)
    if again and not tried.wrong:
        tried.wrong += _idle(Graph(module, graph.args))
        anew = source.chance(50)
        later = analyse(GraphView(module)) if anew else cut_and_carry(flow, removed)
        assert isinstance(later.view.root, fx.GraphModule)
        try_cut(Graph(later.view.root, graph.args), later, source, tried, again=False)


def _cut(flow: Flow, removed: list[int], tried: Tried) -> fx.GraphModule | None:
    try:
        module = cut(flow, removed)
    except LissomError as error:
        found = error.diagnostics[0]
        tried.counts[found.code] += 1
        tried.refused.append(f"{found.code} {found.message}")
        return None
    tried.counts["cuts"] += 1
    return module


def _differences(
    flow: Flow, module: fx.GraphModule, removed: list[int], graph: Graph, tried: Tried
) -> list[str]:
    """Where the cut model is not the masked one."""
    with torch.no_grad():
        full = results(graph.module(*graph.args))
        wanted = results(masked(flow, removed)(*graph.args))
        found = results(module(*graph.args))
    off = max((distance(a, b) for a, b in zip(wanted, found, strict=True)), default=0.0)
    tried.counts["moved"] += any(distance(a, b) > 1e-6 for a, b in zip(full, found, strict=True))
    wrong = [f"the masked model is {off:.3g} away"] if not off <= TOLERANCE else []
    return wrong + misdescribed(module, graph.args)


def _touched(old: fx.GraphModule, new: fx.GraphModule) -> set[str]:
    """The steps that read something that the cut made smaller."""
    now = {node.name: node.meta.get("val") for node in new.graph.nodes}
    smaller = {node for node in old.graph.nodes if now.get(node.name) != node.meta.get("val")}
    return {
        str(node.meta.get("step", ""))
        for node in old.graph.nodes
        if not smaller.isdisjoint(node.all_input_nodes)
    } - {""}


def _idle(graph: Graph) -> list[str]:
    """A cut of nothing changes nothing."""
    flow = analyse(GraphView(graph.module))
    module = cut(flow, [])
    with torch.no_grad():
        pairs = zip(results(graph.module(*graph.args)), results(module(*graph.args)), strict=True)
        same = all(distance(a, b) == 0 for a, b in pairs)  # nan where nan was
    return [] if same and module.code == graph.module.code else ["an empty cut changes it"]


def tried(source: ChoiceSource) -> Tried:
    """A model and two random cuts of it."""
    found = Tried()
    graph = drawn(source)
    for _ in range(2):
        try:
            try_cut(graph, analyse(GraphView(graph.module)), source, found)
        except Exception as error:  # whatever escapes is the finding
            found.wrong.append(f"{type(error).__name__}: {error}")
        if found.wrong or not found.counts["cuts"]:
            break
    return found


def try_graph(seed: int | str) -> Tried:
    """The same from a seed."""
    return tried(Rolled(seed))


def tape_of(seed: int | str) -> tuple[int, ...]:
    """The choices of a seed, for `shrunk` and `Replayed`."""
    source = Recorded(Rolled(seed))
    tried(source)
    return tuple(source.tape)
