"""A model while it grows: its nodes, and the numbers they hold."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ....grammar.diagnostics import LissomError
from ...graph.emit import emit
from ...graph.runs import watched
from ...ops.opspec import OpSpec
from ...ops.spec import spec_of
from ...ops.vocabulary import Vocabulary
from ...rules.rule import CompiledRule
from ..choices.source import ChoiceSource, Rolled, Unsuitable
from .places import inside
from .settings import laid_out, sample

CONTEXT = ("relu", "tanh", "neg", "sigmoid")
"""What may stand before and behind a planted instance."""


ILLEGAL = (
    LissomError, RuntimeError, ValueError, IndexError, TypeError, ArithmeticError,
    AssertionError,
)  # fmt: skip
"""What torch raises for settings that an op does not take."""


@dataclass(slots=True)
class Planted:
    """One instance of a left side: what its names stand for, and its nodes by number of the pattern
    op. `beside` are nodes that belong to no instance but must stay, such as those of an `unless`
    pattern.
    """

    values: dict[str, Any] = field(default_factory=dict)
    nodes: dict[int, fx.Node] = field(default_factory=dict)
    chains: dict[int, list[fx.Node]] = field(default_factory=dict)
    beside: list[fx.Node] = field(default_factory=list)


class Soil:
    """The model while it grows: nodes, and the numbers they hold. `offers` are values that the next
    instance may read, which is of floating numbers then.
    """

    def __init__(
        self, source: ChoiceSource, vocabulary: Vocabulary, module: fx.GraphModule, end: fx.Node
    ) -> None:
        self.source, self.vocabulary, self.module, self.end = source, vocabulary, module, end
        self.real: dict[fx.Node, Any] = {}
        seed = source.integer(0, 1 << 16)
        self.generator, self.ties = torch.Generator().manual_seed(seed), Rolled(seed)
        self.count = 0
        self.offers: list[fx.Node] = []
        self.floating = False

    def mark(self) -> tuple[frozenset[fx.Node], int]:
        """What there is now, for `back`."""
        return frozenset(self.module.graph.nodes), self.count

    def back(self, mark: tuple[frozenset[fx.Node], int]) -> None:
        """Takes out what was added since."""
        kept, count = mark
        for node in reversed([node for node in self.module.graph.nodes if node not in kept]):
            self.module.graph.erase_node(node)
            self.real.pop(node, None)
        for number in range(count + 1, self.count + 1):
            if hasattr(self.module, f"part{number}"):
                delattr(self.module, f"part{number}")
        self.count = count

    def name(self) -> str:
        self.count += 1
        return f"part{self.count}"

    def input(self, kind: str | torch.dtype, shape: Sequence[int]) -> fx.Node:
        last = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        first = next(iter(self.module.graph.nodes))
        graph = self.module.graph
        place = graph.inserting_after(last[-1]) if last else graph.inserting_before(first)
        with place:
            node = graph.placeholder(f"x{len(last)}")
        return self._hold(node, laid_out(self.source, sample(kind, shape, self.generator)))

    def constant(self, value: Tensor) -> fx.Node:
        name, value = self.name(), laid_out(self.source, value)
        self.module.register_buffer(name, value)
        with self.module.graph.inserting_before(self.end):
            node = self.module.graph.get_attr(name)
        return self._hold(node, value)

    def op(
        self,
        op: OpSpec,
        inputs: tuple[Any, ...],
        params: Mapping[str, Tensor | None],
        attrs: Mapping[str, Any],
        place: str = "",
    ) -> fx.Node:
        """A new op at the end; its result is computed on the way. `place` is a module path."""
        tied = self._tied(params)
        params = {**params, **{name: weight.detach() for name, weight in tied.items()}}
        try:
            made = emit(op, inputs, params, attrs)
            if made.layer is not None and not op.writer.is_module and self.source.chance(20):
                made.layer = None  # written as a function of named weights
            with torch.no_grad():
                value = made.run(*map(self.value, inputs))
        except ILLEGAL as e:
            raise Unsuitable(f"{op.name}: {e}") from e
        path = place or self.name()
        node = made.insert(self.module, self.end, path)
        for name, weight in tied.items():
            held = self.module.get_submodule(path)._parameters
            held.update({name: weight} if name in held else {})
        site = path if made.layer is not None else place
        node.meta.update(site=site, source="generated")
        for held in node.all_input_nodes:
            if held not in self.real:
                self._hold(
                    held,
                    getattr(self.module.get_submodule(path), str(held.target)[len(path) + 1 :]),
                )
        return self._hold(node, value)

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

    def part(self, node: fx.Node, index: int) -> fx.Node:
        with self.module.graph.inserting_before(self.end):
            part = self.module.graph.call_function(operator.getitem, (node, index))
        return self._hold(part, self.real[node][index])

    def value(self, item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(map(self.value, item))
        return self.real[item] if isinstance(item, fx.Node) else item

    def _hold(self, node: fx.Node, value: Any) -> fx.Node:
        self.real[node] = value
        node.meta["val"] = spec_of(value)
        node.meta.setdefault("site", "")
        return node

    def convert(self, dtype: torch.dtype) -> None:
        """The whole model in another precision. Raises `Unsuitable` where torch cannot do that."""
        self.module.to(dtype)
        kept: dict[fx.Node, Any] = {}
        given = (self.real[n] for n in self.module.graph.nodes if n.op == "placeholder")
        args = tuple(v.to(dtype) if v.is_floating_point() else v for v in given)
        try:
            watched(self.module, args, kept.__setitem__)
        except ILLEGAL as error:
            raise Unsuitable(f"{dtype}: {error}") from error
        if dtype == torch.float16 and not all(map(_has_room, self._numbers(kept))):
            raise Unsuitable("numbers too large for float16")
        for node, value in kept.items():
            self._hold(node, value)

    def _numbers(self, values: Mapping[fx.Node, Any]) -> list[Any]:
        return [*values.values(), *self.module.parameters(), *self.module.buffers()]

    def placed(self, node: fx.Node, globs: Sequence[str]) -> fx.Node:
        """Something computed from the value in a module that the globs name."""
        relu = self.vocabulary[CONTEXT[0]]
        return self.op(relu, (node,), {}, {}, inside(globs, self.name()))

    def around(self, node: fx.Node) -> fx.Node:
        """The value, or something simple computed from it."""
        value = self.real[node]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return node
        if not self.source.chance(25):
            return node
        return self.op(self.vocabulary[self.source.choice(CONTEXT)], (node,), {}, {})

    def exits(self, rule: CompiledRule, planted: Planted) -> list[fx.Node]:
        """What the model returns: every new value of the rule, and what it lets others read."""
        shared = {name for op in rule.pattern.ops if op.source.shared for name in op.targets}
        names = [n for n in planted.values if n in rule.outputs]
        names += [n for n in planted.values if n in shared and self.source.chance(50)]
        found = [planted.values[name] for name in names]
        beside = [node for node in planted.beside if not node.users]
        layout = any(LAYOUT & (op.ops or set()) for op in rule.pattern.ops)
        behind = self._viewed if layout and self.source.chance(50) else self.around
        return [behind(v) for v in found if isinstance(v, fx.Node)] + beside

    def _viewed(self, node: fx.Node) -> fx.Node:
        """The value as one row, without a copy: that asks for an order in memory."""
        try:
            flat = self.real[node].view(-1)
        except RuntimeError:
            return node
        with self.module.graph.inserting_before(self.end):
            return self._hold(self.module.graph.call_method("view", (node, -1)), flat)


TIED = 10
"""Percent of the weights that another op could have, which are one with that of the other."""

LAYOUT = frozenset({"contiguous", "clone"})
"""Ops that are there for the order of numbers in memory: what they give is read by a `view`. What
other ops give may lie in another order when they are rewritten.
"""

_ROOM = 64.0
"""How many times larger than in the model numbers may become when a rewrite is verified."""


def _has_room(value: Any) -> bool:
    """Whether a number of float16 is far from the end of its range: past it, what a rule merges
    may be finite where the ops one by one are not, and neither side is wrong.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.float16 or not value.numel():
        return True
    return float(value.detach().abs().max()) * _ROOM < torch.finfo(torch.float16).max
