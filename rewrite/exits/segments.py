"""A graph with exits as a network that skips what is behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ..graph.exits import exits_of, outputs_of, set_limit
from ..graph.snapshot import finish
from ..runtime.exits import EarlyExit, ExitTest, agreement
from ..torch_internals import tree_map
from .order import Order
from .parts import Parts


@dataclass(frozen=True)
class Behind:
    """What goes on behind exits. rows: whether each value holds a row for each sample, by the name
    of its node; sizes: the nodes of the graph that give sizes, which each part computes anew;
    order: what runs in front of a node beside what it reads.
    """

    rows: Mapping[str, bool] = field(default_factory=dict)
    sizes: frozenset[str] = frozenset()
    order: Order = field(default_factory=dict)


def has_exits(module: fx.GraphModule) -> bool:
    return bool(exits_of(module.graph))


def early_exit(module: fx.GraphModule, behind: Behind) -> EarlyExit:
    """The network of a graph with exits; it shares all weights. Raises R017 where the graph cannot
    be parted.
    """
    parts = Parts.known(module, behind.sizes, behind.order)
    bodies = [_Part(parts).body(at) for at in range(len(parts.exits) + 1)]
    heads = [_Part(parts).head(at) for at in range(len(parts.exits))]
    tests = [ExitTest(e.test, e.limit, e.score.target is agreement) for e in parts.exits]
    by_row = [[behind.rows[node.name] for node in nodes] for nodes in parts.handed_on]
    plain = isinstance(parts.output.args[0], fx.Node)
    made = EarlyExit(bodies, heads, _Part(parts).outputs(), tests, by_row, plain)
    for part in (made, made.bodies, made.heads):  # layers are shared, and have modes of their own
        part.training = module.training
    return made


def running(module: fx.GraphModule, behind: Behind) -> fx.GraphModule | EarlyExit:
    """The model that is run: the graph itself where it has no exit."""
    return early_exit(module, behind) if has_exits(module) else module


def write_back(module: fx.GraphModule, network: EarlyExit) -> bool:
    """Puts thresholds of a network into the graph that it was made from; whether any differed."""
    pairs = list(zip(exits_of(module.graph), network.thresholds, strict=True))
    changed = [(one.node, limit) for one, limit in pairs if one.limit != limit]
    for node, limit in changed:
        set_limit(node, limit)
    if changed:
        finish(module)
    return bool(changed)


class _Part:
    """One part as a graph of its own. env: its nodes by those of the whole graph."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.graph = parts, fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}

    def body(self, at: int) -> fx.GraphModule:
        """What it gives is what is handed on; the last one gives the output tensor."""
        handed = self.parts.handed_on
        if at:
            self._take(handed[at - 1])
        else:
            self._take_inputs()
        self._compute(self.parts.body(at))
        if at == len(handed):
            return self._done(self._of(outputs_of(self.parts.module.graph)[0]))
        return self._done(tuple(self._of(node) for node in handed[at]))

    def head(self, at: int) -> fx.GraphModule:
        """Logits and score of what its body handed on."""
        one = self.parts.exits[at]
        self._take(self.parts.handed_on[at])
        self._compute(self.parts.head(at))
        return self._done((self._of(one.logits), self._of(one.score)))

    def outputs(self) -> fx.GraphModule:
        """The output tensor in the form of the model's outputs."""
        inner = self.graph.placeholder("outputs")
        args = self.parts.output.args[0]
        return self._done(tree_map(lambda leaf: inner if isinstance(leaf, fx.Node) else leaf, args))

    def _take_inputs(self) -> None:
        """Those of the model, with their defaults."""
        for node in self.parts.module.graph.find_nodes(op="placeholder"):
            self.env[node] = self.graph.node_copy(node)

    def _take(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            self.env[node] = self.graph.placeholder(node.name)
            self.env[node].meta = dict(node.meta)

    def _compute(self, nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            self.env[node] = self.graph.node_copy(node, self._of)

    def _of(self, node: fx.Node) -> fx.Node:
        if node not in self.env:
            assert self.parts.taken_anew(node), node
            self.env[node] = self.graph.node_copy(node, self._of)
        return self.env[node]

    def _done(self, output: Any) -> fx.GraphModule:
        self.graph.output(output)
        made = fx.GraphModule(self.parts.module, self.graph)
        finish(made)
        return made
