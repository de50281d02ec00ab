"""Which node of a graph with exits belongs to which part of it.

Body k is all that exit k and its head need and no body in front of it computes; the last body is
the rest. Heads are what only exits read. Weights and sizes are no values that go from part to part:
each part takes them anew, for behind an exit a batch is smaller. What checks sizes, or writes to
memory, stays on the side of the exit where it stands.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx

from ...grammar.diagnostics import Label, LissomError, fail
from ...grammar.reached import reached
from ..graph.exits import ExitNode, exits_of
from ..graph.places import name_of
from ..graph.snapshot import snapshot
from ..ops.spec import TensorSpec
from .order import Order, effects_of, order_in


def sizes_of(module: fx.GraphModule) -> frozenset[str]:
    """The nodes of a compiled graph that give sizes, not tensors, by name."""
    effects = set(effects_of(module))
    return frozenset(n.name for n in module.graph.nodes if n not in effects and _gives_sizes(n))


def _gives_sizes(node: fx.Node) -> bool:
    value = node.meta.get("val")
    plain = node.op not in ("placeholder", "get_attr", "output")
    return plain and not isinstance(value, (TensorSpec, Tensor, tuple, list))


def cannot_leave(why: str) -> LissomError:
    """R017: samples cannot leave at an exit."""
    return fail("R017", "samples cannot leave here", Label(None, why))


@dataclass(frozen=True)
class Parts:
    """The parts of a graph, of which exits are taken out. at: the body of each value that the
    outputs need, 0 for inputs; sizes: the nodes that give sizes.
    """

    module: fx.GraphModule
    exits: Sequence[ExitNode]
    at: Mapping[fx.Node, int]
    sizes: frozenset[str]

    @classmethod
    def of(cls, module: fx.GraphModule) -> Parts:
        """Of a graph that was compiled here."""
        return cls.known(module, sizes_of(module), order_in(module))

    @classmethod
    def known(cls, module: fx.GraphModule, sizes: frozenset[str], order: Order) -> Parts:
        copied = snapshot(module)
        exits = list(_taken_out(copied.graph))
        named = {node.name: node for node in copied.graph.nodes}

        def in_front(node: fx.Node) -> Iterator[fx.Node]:
            yield from node.all_input_nodes
            yield from (named[name] for name in order.get(node.name, ()) if name in named)

        trunk = set(reached([_output(copied.graph)], in_front))
        at = {node: 0 for node in copied.graph.nodes if node.op == "placeholder"}
        for number, one in enumerate(exits):
            starts = [one.value, one.logits, one.score, *in_front(one.node)]
            for node in (n for n in reached(starts, in_front) if n in trunk):
                at.setdefault(node, number)
        for node in (n for n in copied.graph.nodes if n in trunk):
            at.setdefault(node, len(exits))
            if _takes_part(node):  # of a state, of inputs by name: that is no tensor to hand on
                at[node] = at[node.all_input_nodes[0]]
        return cls(copied, exits, at, sizes)

    @property
    def output(self) -> fx.Node:
        return _output(self.module.graph)

    def taken_anew(self, node: fx.Node) -> bool:
        """Whether each part computes the node itself: weights, and sizes."""
        return node.op == "get_attr" or node.name in self.sizes

    def body(self, number: int) -> list[fx.Node]:
        """The values of a body, in order; inputs are not among them."""
        return [n for n in self.module.graph.nodes if self._lies_in(n, number)]

    def _lies_in(self, node: fx.Node, number: int) -> bool:
        own = node.op not in ("placeholder", "output") and not self.taken_anew(node)
        return own and self.at.get(node) == number

    def head(self, number: int) -> list[fx.Node]:
        """The values that only an exit reads, in order."""
        one = self.exits[number]
        onward = {n: n.all_input_nodes for n in self.module.graph.nodes if n not in self.at}
        needed = set(reached([one.logits, one.score], lambda n: onward.get(n, ())))
        return [n for n in onward if n in needed and not self.taken_anew(n)]

    @cached_property
    def handed_on(self) -> list[list[fx.Node]]:
        """What each body but the last hands on: what its head reads, or a part behind it. Raises
        R017 where that is no tensor.
        """
        found, wanted = [], set(self._read_by([*self.body(len(self.exits)), self.output]))
        for at in reversed(range(len(self.exits))):
            one = self.exits[at]
            wanted |= {*self._read_by(self.head(at)), one.logits, one.score}
            found.append(self._given_by(at, wanted))
            wanted |= set(self._read_by(self.body(at)))
        return found[::-1]

    def _given_by(self, at: int, wanted: set[fx.Node]) -> list[fx.Node]:
        """Of these, what the bodies up to this one compute."""
        found = [n for n in self.module.graph.nodes if n in wanted and self.at.get(n, at + 1) <= at]
        found = [n for n in found if not self.taken_anew(n)]
        odd = next(
            (n for n in found if isinstance(n.meta.get("val"), (tuple, list, Mapping))), None
        )
        if odd is not None:
            raise cannot_leave(f"`{name_of(odd)}` is read behind the exit and is no tensor")
        return found

    def _read_by(self, nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
        """What nodes read, through all that each part takes anew."""
        for node in (read for reader in nodes for read in reader.all_input_nodes):
            if self.taken_anew(node):
                yield from self._read_by([node])
            else:
                yield node


def _takes_part(node: fx.Node) -> bool:
    """Whether a node is `value[0]` or `value["name"]`."""
    return node.target is operator.getitem and isinstance(node.args[1], (int, str))


def _taken_out(graph: fx.Graph) -> Iterator[ExitNode]:
    """The exits, each read when those in front of it are gone."""
    while exits := exits_of(graph):
        exits[0].node.replace_all_uses_with(exits[0].value)
        graph.erase_node(exits[0].node)
        yield exits[0]


def _output(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")
