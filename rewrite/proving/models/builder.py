"""A model while it is built: its nodes, and the numbers that they hold."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....grammar.diagnostics import LissomError
from ...graph.emit import Emitted, emit
from ...ops.call import tensor_at
from ...ops.opspec import OpSpec
from ...ops.spec import spec_of
from ...ops.vocabulary import Vocabulary
from ..choices.source import ChoiceSource, Rolled, Unsuitable
from .places import inside

CONTEXT = ("relu", "tanh", "neg", "sigmoid")
"""What may stand before and behind a planted instance."""

ILLEGAL = (
    LissomError, RuntimeError, ValueError, IndexError, TypeError, ArithmeticError,
    AssertionError,
)  # fmt: skip
"""What torch raises for settings that an op does not take."""

TIED = 10
"""Percent of the weights that another op could have, which are one with that of the other."""


class GraphBuilder:
    """Every op runs once as it is added, so that only legal models come out. Raises `Unsuitable`
    where torch does not take a call.

    real: what each node gave. seed, generator: of the model's numbers, which are of `dtype`.
    offers: values that the next op may read. floating: whether operands of any type are floating.
    """

    dtype = torch.float32

    def __init__(self, source: ChoiceSource, vocabulary: Vocabulary) -> None:
        self.source, self.vocabulary = source, vocabulary
        self.offers: list[fx.Node] = []
        self.floating = False
        self.module = fx.GraphModule(nn.Module(), fx.Graph())
        self.graph = self.module.graph
        self.end = self.graph.output(None)
        self.real: dict[fx.Node, Any] = {}
        self.count = 0
        self.seed = source.integer(0, 1 << 16)
        self.generator, self.ties = torch.Generator().manual_seed(self.seed), Rolled(self.seed)

    # -- taking back -------------------------------------------------------------------------------

    def mark(self) -> tuple[frozenset[fx.Node], int]:
        """What there is now, for `back`."""
        return frozenset(self.graph.nodes), self.count

    def back(self, mark: tuple[frozenset[fx.Node], int]) -> None:
        """Takes out what was added since."""
        kept, count = mark
        for node in reversed([node for node in self.graph.nodes if node not in kept]):
            self.graph.erase_node(node)
            self.real.pop(node, None)
        for number in range(count + 1, self.count + 1):
            if hasattr(self.module, f"part{number}"):
                delattr(self.module, f"part{number}")

    def name(self) -> str:
        """A path that is free."""
        self.count += 1
        return f"part{self.count}"

    # -- nodes -------------------------------------------------------------------------------------

    def input(self, value: Tensor) -> fx.Node:
        last = [node for node in self.graph.nodes if node.op == "placeholder"]
        first = next(iter(self.graph.nodes))
        place = self.graph.inserting_after(last[-1]) if last else self.graph.inserting_before(first)
        with place:
            node = self.graph.placeholder(f"x{len(last)}")
        return self.hold(node, value)

    def constant(self, value: Tensor) -> fx.Node:
        name = self.name()
        self.module.register_buffer(name, value)
        return self.read(name)

    def read(self, path: str) -> fx.Node:
        """The parameter or buffer at a path, by its name."""
        with self.graph.inserting_before(self.end):
            node = self.graph.get_attr(path)
        return self.hold(node, tensor_at(self.module, path).detach())

    def op(
        self,
        op: OpSpec,
        inputs: tuple[Any, ...],
        params: Mapping[str, Tensor | None],
        attrs: Mapping[str, Any],
        place: str = "",
    ) -> fx.Node:
        """A new call of a declared op, as a layer or as a function of named weights. `place` is a
        module path.
        """
        tied = self._tied(params)
        params = {**params, **{name: weight.detach() for name, weight in tied.items()}}
        made, value = self._made(op, inputs, params, attrs)
        path = place or self.name()
        node = made.insert(self.module, self.end, path)
        for name, weight in tied.items():
            held = self.module.get_submodule(path)._parameters
            held.update({name: weight} if name in held else {})
        site = path if made.layer is not None else place
        node.meta.update(site=site, source="generated")
        for held in node.all_input_nodes:
            if held not in self.real:
                self.hold(held, tensor_at(self.module, str(held.target)))
        return self.hold(node, value)

    def _made(
        self,
        op: OpSpec,
        inputs: tuple[Any, ...],
        params: Mapping[str, Tensor | None],
        attrs: Mapping[str, Any],
    ) -> tuple[Emitted, Any]:
        """How the call is written, and what it gives."""
        try:
            made = emit(op, inputs, params, attrs)
            if made.layer is not None and not op.writer.is_module and self.source.chance(20):
                made.layer = None  # written as a function of named weights
        except ILLEGAL as error:
            raise Unsuitable(f"{op.name}: {error}") from error
        return made, self.run(op.name, made.run, *map(self.value, inputs))

    def run(self, name: str, what: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """What a call gives."""
        try:
            with torch.no_grad():
                return what(*args, **named)
        except ILLEGAL as error:
            raise Unsuitable(f"{name}: {error}") from error

    def _tied(self, params: Mapping[str, Tensor | None]) -> dict[str, nn.Parameter]:
        """Seldom, the weight of another op in the place of one of the same name and shape."""
        known = list(self.module.named_parameters())
        found = {}
        for name, drawn in params.items():
            alike = [
                weight
                for path, weight in known
                if drawn is not None
                and path.rpartition(".")[2] == name
                and weight.shape == drawn.shape
                and weight.dtype == drawn.dtype
            ]
            if alike and self.ties.chance(TIED):
                found[name] = self.ties.choice(alike)
        return found

    def around(self, node: fx.Node) -> fx.Node:
        """The value, or something simple computed from it."""
        value = self.real[node]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return node
        if not self.source.chance(25):
            return node
        return self.op(self.vocabulary[self.source.choice(CONTEXT)], (node,), {}, {})

    def placed(self, node: fx.Node, globs: Sequence[str]) -> fx.Node:
        """Something computed from the value in a module that the globs name."""
        relu = self.vocabulary[CONTEXT[0]]
        return self.op(relu, (node,), {}, {}, inside(globs, self.name()))

    def part(self, node: fx.Node, index: int) -> fx.Node:
        """One of the results of an op with several."""
        with self.graph.inserting_before(self.end):
            part = self.graph.call_function(operator.getitem, (node, index))
        return self.hold(part, self.real[node][index])

    def value(self, item: Any) -> Any:
        """What a node gave; anything else is itself."""
        if isinstance(item, tuple):
            return tuple(map(self.value, item))
        return self.real[item] if isinstance(item, fx.Node) else item

    def hold(self, node: fx.Node, value: Any) -> fx.Node:
        self.real[node] = value
        node.meta["val"] = spec_of(value)
        node.meta.setdefault("site", "")
        return node

    def finish(self, results: Any) -> tuple[Tensor, ...]:
        """The model returns these nodes; its inputs."""
        self.end.args = (results,)
        self.end.meta["val"] = fx.node.map_aggregate(
            results, lambda item: item.meta["val"] if isinstance(item, fx.Node) else item
        )
        self.graph.lint()
        self.module.recompile()
        return tuple(self.real[node] for node in self.graph.nodes if node.op == "placeholder")
