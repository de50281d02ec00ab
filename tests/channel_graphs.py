"""Random models with random wiring, and cuts of them that are judged by the masked model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from lissom.grammar.diagnostics import LissomError
from lissom.rewrite.channels.carry import cut_and_carry
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.flow import Flow, analyse
from lissom.rewrite.channels.masked import masked
from lissom.rewrite.model_check import distance
from lissom.rewrite.proving.source import Recorded, Rolled, Source, Unsuitable
from lissom.rewrite.spec import spec_of
from lissom.rewrite.view import View

from . import channel_moves as moves
from .channel_drawing import Drawing
from .channel_steps import EXTENTS, OFTEN, SPACE, STEPS
from .cutting import free, results

TOLERANCE = 1e-10
"""Relative, in float64."""

assert moves  # its steps are among STEPS


@dataclass(frozen=True)
class Graph:
    """A drawn model and inputs for it."""

    module: fx.GraphModule
    args: tuple[Tensor, ...]


@dataclass
class Tried:
    """What random cuts of one model showed. counts: cuts, refusals and the like. steps: those that
    a cut touched. refused: what LissomErrors said. wrong: mistakes.
    """

    counts: Counter[str] = field(default_factory=Counter)
    steps: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


# -- drawing ---------------------------------------------------------------------------------------


def drawn(source: Source) -> Graph:
    """A model of some ten steps."""
    m = Drawing(source)
    _inputs(m)
    given = list(m.open)
    for _ in range(m.choice((1, 2))):
        _grow(m, ("conv", "linear") if m.shape(m.open[0])[2:] else ("linear",))
    if len(m.open) > len(given) and m.chance(85):
        m.open = m.open[len(given) :]
    for _ in range(source.integer(0, 9)):
        _grow(m, OFTEN)
    ends = [_head(m, node) for node in m.open if not node.users][:6]
    args = tuple(m.real[node] for node in m.graph.nodes if node.op == "placeholder")
    out = m.graph.output(ends[0] if len(ends) == 1 else tuple(ends))
    out.meta.update(val=spec_of(m.value(ends[0])), step="")
    return Graph(fx.GraphModule(m.root, m.graph), args)


def _inputs(m: Drawing) -> None:
    n, kind = m.choice((2, 3, 1)), m.choice((0, 2, 0, 1, 3, 4))
    space = [m.choice(SPACE) for _ in range(2)]
    width = m.choice(EXTENTS[1:])
    if kind == 4:  # indices
        ids = torch.randint(0, 7, (n, space[0]), generator=m.generator)
        m.name = "embedding"
        m.open.append(m.call(nn.Embedding(7, m.choice(EXTENTS)), m.input(ids)))
        return
    shape = ((n, width, *space), (n, width, space[0]), (n, space[0], width), (n, width))[kind]
    for _ in range(m.choice((1, 1, 2))):
        m.open.append(m.input(m.random(*shape)))


def _grow(m: Drawing, names: Sequence[str]) -> None:
    """One more step, on a recent value mostly; a few tries are made."""
    for _ in range(12):
        m.name = m.choice(names)
        x = m.open[-1 - m.source.integer(0, min(len(m.open), m.choice((1, 3, 12))) - 1)]
        before = list(m.graph.nodes)
        try:
            found = STEPS[m.name](m, x)
        except Unsuitable:
            _back(m, before)
            continue
        made = [found] if isinstance(found, fx.Node) else list(found)
        m.open += [node for node in made if m.real[node].is_floating_point()]
        return


def _back(m: Drawing, before: Sequence[fx.Node]) -> None:
    known = set(before)
    for node in reversed([node for node in m.graph.nodes if node not in known]):
        m.graph.erase_node(node)
        del m.real[node]


def _head(m: Drawing, x: fx.Node) -> fx.Node:
    """What reads the last values: outputs themselves must stay."""
    shape = m.shape(x)
    m.name = "head"
    if len(shape) < 2 or m.chance(10):
        return x
    if m.chance(15):
        x = m.call("flatten", x, 1)
        return m.call(nn.Linear(m.shape(x)[1], 3), x)
    axis = m.features(x)
    if axis == 1 and len(shape) in (3, 4) and m.chance(60):
        layer = nn.Conv2d if len(shape) == 4 else nn.Conv1d
        return m.call(layer(shape[1], 3, 1), x)
    if axis not in (None, len(shape) - 1):
        x = m.call("transpose", x, axis, -1)
    return m.call(nn.Linear(m.shape(x)[-1], 3), x)


# -- judging ---------------------------------------------------------------------------------------


def some(source: Source, flow: Flow) -> list[int]:
    """Leaves to remove: about half of each of some classes, one of each stays at least."""
    dims = free(flow)
    chosen = [dim for dim in dims if source.chance(60)] or dims
    removed = []
    for dim in chosen:
        leaves = list(dim.leaves)
        for _ in range(max(1, dim.size // 2)):
            removed.append(leaves.pop(source.integer(0, len(leaves) - 1)))
    return removed


class _Real(fx.Interpreter):
    """Runs a graph and compares what each node gives with what its meta says."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.wrong: list[str] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        said = n.meta.get("val")
        if n.op != "output" and not _same(said, spec_of(value)):
            self.wrong.append(f"{n.name} is said to be {said}, is {spec_of(value)}")
        return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def try_cut(graph: Graph, flow: Flow, source: Source, tried: Tried, again: bool = True) -> None:
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
    tried.wrong += _unties(flow, module)
    if again and not tried.wrong:
        tried.wrong += _idle(Graph(module, graph.args))
        anew = source.chance(50)
        later = analyse(View(module)) if anew else cut_and_carry(flow, removed)
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
    runner = _Real(module)
    with torch.no_grad():
        full = results(graph.module(*graph.args))
        wanted = results(masked(flow, removed)(*graph.args))
        found = results(runner.run(*graph.args))
    off = max((distance(a, b) for a, b in zip(wanted, found, strict=True)), default=0.0)
    tried.counts["moved"] += any(distance(a, b) > 1e-6 for a, b in zip(full, found, strict=True))
    wrong = [f"the masked model is {off:.3g} away"] if not off <= TOLERANCE else []
    return wrong + runner.wrong


def _touched(old: fx.GraphModule, new: fx.GraphModule) -> set[str]:
    """The steps that read something that the cut made smaller."""
    now = {node.name: node.meta.get("val") for node in new.graph.nodes}
    smaller = {node for node in old.graph.nodes if now.get(node.name) != node.meta.get("val")}
    return {
        str(node.meta.get("step", ""))
        for node in old.graph.nodes
        if not smaller.isdisjoint(node.all_input_nodes)
    } - {""}


def _unties(flow: Flow, module: nn.Module) -> list[str]:
    """Parameters that were one and are no longer."""
    state = module.state_dict(keep_vars=True)
    first: dict[Any, str] = {}
    pairs = [(first.setdefault(key, path), path) for path, key in flow.paths.items()]
    return [f"{b} was {a}" for a, b in pairs if a in state and state.get(b) is not state[a]]


def _idle(graph: Graph) -> list[str]:
    """A cut of nothing changes nothing."""
    flow = analyse(View(graph.module))
    module = cut(flow, [])
    with torch.no_grad():
        same = map(torch.equal, results(graph.module(*graph.args)), results(module(*graph.args)))
        return [] if all(same) and module.code == graph.module.code else ["an empty cut changes it"]


def tried(source: Source) -> Tried:
    """A model and two random cuts of it."""
    found = Tried()
    graph = drawn(source)
    for _ in range(2):
        try:
            try_cut(graph, analyse(View(graph.module)), source, found)
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
