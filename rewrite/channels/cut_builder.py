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
from .selection import Axes, Selection, shrunk
from .sizes import specs_of


def free_name(module: nn.Module, stem: str) -> str:
    """A name that nothing in the module has."""
    return next(n for i in count() if not hasattr(module, n := f"{stem}_{i}"))


@dataclass(frozen=True, slots=True)
class Share:
    """A size that is computed from the batch, say: `times / over` of what it was."""

    node: fx.Node
    times: int
    over: int


@dataclass
class Work:
    """What has been made so far.

    new: nodes of the old graph -> nodes of the new one. tensors: what was sliced. parameters: those
    of new layers. numbers: what nodes that give no tensors give now, where that changed.
    """

    flow: Flow
    kept: Selection
    module: fx.GraphModule
    new: dict[fx.Node, fx.Node]
    tensors: dict[Key, Tensor] = field(default_factory=dict)
    parameters: dict[Key, nn.Parameter] = field(default_factory=dict)
    numbers: dict[fx.Node, Any] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)

    def tracks(self, node: fx.Node, result: int = 0) -> Labels:
        """What the analysis said; nothing of parameters that it did not need."""
        if node.op == "get_attr":
            return self.flow.params.get(self.flow.key(str(node.target)), ())
        return self.flow.values[node][result]

    def axes(self, node: fx.Node, result: int = 0) -> Axes:
        """What stays of a result."""
        spec = specs_of(node)[result]
        return {} if spec is None else self.kept.axes(self.tracks(node, result), len(spec.shape))

    def shape(self, node: fx.Node, result: int = 0) -> tuple[int, ...]:
        """The new shape of a result."""
        spec = specs_of(node)[result]
        return () if spec is None else shrunk(spec.shape, self.axes(node, result))

    def now(self, value: Any) -> Any:
        """The number that a node gives after the cut; anything else as it is."""
        if isinstance(value, Share):
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
        held = {name: path and self._holder(call, path) for name, path in call.params.items()}
        inputs = dict(zip((spec.name for spec in op.inputs), call.inputs, strict=True))
        given = fx.node.map_aggregate({**inputs, **held, **attrs}, self._renewed)
        args, kwargs = op.writer.arguments(given)
        old, graph = self.new[call.node], self.module.graph
        with graph.inserting_before(old):
            if op.writer.is_method:
                self.stand_in(call.node, graph.call_method(op.writer.name, args, kwargs))
            else:
                self.stand_in(call.node, graph.call_function(op.writer.function, args, kwargs))

    def _holder(self, call: OpCall, path: str) -> fx.Node:
        """The node that reads a parameter: the old one of a function, a new one of a layer."""
        named = {str(n.target): n for n in call.node.all_input_nodes if n.op == "get_attr"}
        if path in named:
            return named[path]
        with self.module.graph.inserting_before(self.new[call.node]):
            node = self.module.graph.get_attr(path)
        tensor = tensor_at(self.module, path)
        node.meta["val"] = TensorSpec(tuple(tensor.shape), tensor.dtype)
        return node

    def stand_in(self, node: fx.Node, new: fx.Node) -> None:
        """A new node in the place of the one that was copied."""
        old = self.new[node]
        new.meta.update(old.meta)
        old.replace_all_uses_with(new)
        name = old.name
        self.module.graph.erase_node(old)
        new._rename(name)
        self.new[node] = new

    def _renewed(self, value: Any) -> Any:
        if isinstance(value, Share):
            return self._computed(value)
        return self.new.get(value, value) if isinstance(value, fx.Node) else value

    def _computed(self, share: Share) -> fx.Node:
        """Nodes that compute the share of a size."""
        node = self.new[share.node]
        for function, number in ((operator.mul, share.times), (operator.floordiv, share.over)):
            if number != 1:
                with self.module.graph.inserting_after(node):
                    new = self.module.graph.call_function(function, (node, number))
                new.meta["val"] = function(node.meta["val"], number)
                node = new
        return node
