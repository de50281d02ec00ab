"""What a `fixpoint` still has to try."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from torch import fx

from ..apply.engine import anchor, refusal
from ..rules.binding import NoMatch
from ..rules.pattern import PatternOp
from ..rules.rule import CompiledRule
from ..rules.state import State
from ..torch_internals import is_erased, order_of


class Worklist:
    """Nodes to try, in graph order, each at most once at a time."""

    def __init__(self, state: State, rules: Sequence[CompiledRule]) -> None:
        self.state = state
        self.starts = [(rule, anchor(state, rule)) for rule in rules]
        self.reach = max((rule.pattern.reach for rule in rules), default=1)
        self.heap: list[tuple[tuple[int, ...], int, fx.Node]] = []
        self.waiting: set[fx.Node] = set()
        self.misses: dict[tuple[CompiledRule, fx.Node], NoMatch] = {}
        self.serial = 0
        names = frozenset().union(*(start.ops or frozenset() for _, start in self.starts))
        self.names = None if any(start.ops is None for _, start in self.starts) else names
        self.push(list(state.module.graph.nodes))

    def push(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            if node in self.waiting or is_erased(node) or not self._wanted(node):
                continue
            self.waiting.add(node)
            self.serial += 1
            heapq.heappush(self.heap, (order_of(node), self.serial, node))

    def _wanted(self, node: fx.Node) -> bool:
        if self.names is None:
            return self.state.view.call(node) is not None
        return not self.names.isdisjoint(self.state.view.may_be(node))

    def pop(self) -> fx.Node | None:
        while self.heap:
            node = heapq.heappop(self.heap)[2]
            self.waiting.discard(node)
            if not is_erased(node):
                return node
        return None

    def rules_for(self, node: fx.Node) -> list[tuple[CompiledRule, PatternOp]]:
        names = self.state.view.may_be(node)
        return [
            (rule, start)
            for rule, start in self.starts
            if start.ops is None or not start.ops.isdisjoint(names)
        ]

    def near(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Nodes whose own match may depend on `nodes`: those within the reach of the patterns."""
        found, edge = dict.fromkeys(nodes), nodes
        for _ in range(self.reach):
            around = {o: None for n in edge for o in (*n.all_input_nodes, *n.users)}
            edge = [other for other in around if other not in found]
            found.update(dict.fromkeys(edge))
        return list(found)

    def missed(self, rule: CompiledRule, node: fx.Node, miss: NoMatch) -> None:
        self.misses[rule, node] = miss

    def report(self, stage: str) -> None:
        """Only the last miss of a node that still stands is news."""
        for (rule, node), miss in self.misses.items():
            if not is_erased(node):
                self.state.journal.add(refusal(stage, rule, node, miss))
