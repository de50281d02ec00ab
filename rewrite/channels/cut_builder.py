"""A cut under way: the model it is made from, the one that it makes, and what is known of both."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, fx, nn

from ..ops.call import OpCall, tensor_at
from ..ops.opspec import OpSpec
from ..ops.spec import TensorSpec
from .flow import Flow, Key
from .labels import Labels
from .reach import Reach
from .selection import Axes, Selection, shrunk
from .sizes import specs_of


def free_name(module: nn.Module, stem: str) -> str:
    """A name that nothing in the module has."""
    return next(n for i in count() if not hasattr(module, n := f"{stem}_{i}"))


@dataclass(frozen=True, slots=True)
class SizeShare:
    """A size that is computed from the batch, say: `times / over` of what it was."""

    node: fx.Node
    times: int
    over: int


@dataclass
class Work:
    """What has been made so far.

    new: nodes of the old graph -> nodes of the new one. tensors: what was sliced. parameters: those
    of new layers. numbers: what nodes that give no tensors give now, where that changed. layers:
    those that were built for this cut. gone: nodes of the old graph that have no new one any more.
    respelled: those that are written otherwise in the new one, each with the nodes that it needs
    besides. fresh, dropped: nodes of the new graph that this cut added and erased. rewritten: nodes
    of the old graph whose call or settings this cut changed.

    Features may go in several cuts. Each makes anew what it reaches, from the old model and all
    that has gone by then, so that the result is that of one cut.
    """

    flow: Flow
    kept: Selection
    module: fx.GraphModule
    new: dict[fx.Node, fx.Node]
    reach: Reach
    tensors: dict[Key, Tensor] = field(default_factory=dict)
    parameters: dict[Key, nn.Parameter] = field(default_factory=dict)
    numbers: dict[fx.Node, Any] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)
    gone: set[fx.Node] = field(default_factory=set)
    respelled: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    fresh: list[fx.Node] = field(default_factory=list)
    dropped: list[fx.Node] = field(default_factory=list)
    rewritten: set[fx.Node] = field(default_factory=set)

    def tracks(self, node: fx.Node, result: int = 0) -> Labels:
        """What the analysis said; nothing of parameters that it did not need."""
        if node.op == "get_attr":
            return self.flow.params.get(self.flow.key(str(node.target)), ())
        return self.flow.values[node][result]

    def axes(self, node: fx.Node, result: int = 0) -> Axes:
        """What stays of a result."""
        spec = specs_of(node)[result]
        return {} if spec is None else self.kept.axes(self.tracks(node, result))

    def shape(self, node: fx.Node, result: int = 0) -> tuple[int, ...]:
        """The new shape of a result."""
        spec = specs_of(node)[result]
        return () if spec is None else shrunk(spec.shape, self.axes(node, result))

    def now(self, value: Any) -> Any:
        """The number that a node gives after the cut; anything else as it is."""
        if isinstance(value, SizeShare):
            return self.now(value.node) * value.times // value.over
        if not isinstance(value, fx.Node):
            return value
        return self.numbers.get(value, value.meta.get("val"))

    def sliced(self, path: str) -> Tensor | None:
        """The parameter at a path after the cut; None where nothing of it went."""
        return self.tensors.get(self.flow.key(path))

    def describe(self, node: fx.Node) -> None:
        """Writes down what the new node's value is."""
        old = node.meta.get("val")
        found = [
            spec and TensorSpec(self.shape(node, i), spec.dtype)
            for i, spec in enumerate(specs_of(node))
        ]
        if not any(found):
            self.new[node].meta["val"] = self.now(node)
        elif isinstance(old, (tuple, list)):
            several = (new or value for new, value in zip(found, old, strict=True))
            self.new[node].meta["val"] = type(old)(several)
        else:
            self.new[node].meta["val"] = found[0]

    # -- new nodes ---------------------------------------------------------------------------------

    def respell(self, call: OpCall, op: OpSpec, attrs: Mapping[str, Any]) -> None:
        """The node calls an op with other settings, on what it read before."""
        known = len(self.fresh)
        held = {name: path and self._holder(call, path) for name, path in call.params.items()}
        inputs = dict(zip((spec.name for spec in op.inputs), call.inputs, strict=True))
        given = fx.node.map_aggregate({**inputs, **held, **attrs}, self._renewed)
        writer = op.writer
        args, kwargs = writer.arguments(given)
        if writer.is_method:
            self.stand_in(call.node, "call_method", writer.name, args, kwargs)
        else:
            self.stand_in(call.node, "call_function", writer.function, args, kwargs)
        self.needs(call.node, self.fresh[known:])

    def _holder(self, call: OpCall, path: str) -> fx.Node:
        """The node that reads a parameter: the old one of a function, a new one of a layer."""
        named = {str(n.target): n for n in call.node.all_input_nodes if n.op == "get_attr"}
        if path in named:
            return named[path]
        with self.module.graph.inserting_before(self.new[call.node]):
            node = self.module.graph.get_attr(path)
        self.fresh.append(node)
        tensor = tensor_at(self.module, path)
        node.meta["val"] = TensorSpec(tuple(tensor.shape), tensor.dtype)
        return node

    def needs(self, node: fx.Node, others: list[fx.Node]) -> None:
        """The new node in the place of this one needs these besides; no longer what it needed."""
        for old in reversed(self.respelled.get(node, [])):
            self.drop(old)
        self.respelled[node] = others

    def drop(self, node: fx.Node) -> None:
        """Erases a node of the new graph, and the tensor that it alone reads."""
        name = str(node.target)
        if node.op == "get_attr" and name in self.module._buffers and not self._is_old(name):
            delattr(self.module, name)
        self.module.graph.erase_node(node)
        self.dropped.append(node)

    def _is_old(self, name: str) -> bool:
        return hasattr(self.flow.view.root, name)

    def stand_in(
        self, node: fx.Node, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """The node that was copied calls something else; it keeps its name and its readers."""
        new = self.new[node]
        self.rewritten.add(node)
        new.op, new.target, new.args, new.kwargs = op, target, args, kwargs

    def _renewed(self, value: Any) -> Any:
        if isinstance(value, SizeShare):
            return self._computed(value)
        return self.new.get(value, value) if isinstance(value, fx.Node) else value

    def _computed(self, share: SizeShare) -> fx.Node:
        """Nodes that compute the share of a size."""
        node = self.new[share.node]
        for function, number in ((operator.mul, share.times), (operator.floordiv, share.over)):
            if number != 1:
                with self.module.graph.inserting_after(node):
                    new = self.module.graph.call_function(function, (node, number))
                new.meta["val"] = function(node.meta["val"], number)
                self.fresh.append(new)
                node = new
        return node
