"""A model around instances of a rule's left side, while it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.runs import watched
from ...rules.rule import CompiledRule
from ..choices.source import Unsuitable
from .builder import ILLEGAL, GraphBuilder

LAYOUT = frozenset({"contiguous", "clone"})
"""Ops that are there for the order of numbers in memory: what they give is read by a `view`. What
other ops give may lie in another order when they are rewritten.
"""


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


class PatternBuilder(GraphBuilder):
    """What only instances of a pattern ask for: their results, and another precision."""

    # -- results -----------------------------------------------------------------------------------

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
        with self.graph.inserting_before(self.end):
            return self.hold(self.graph.call_method("view", (node, -1)), flat)

    # -- other types -------------------------------------------------------------------------------

    def convert(self, dtype: torch.dtype) -> None:
        """The whole model in another precision. Raises `Unsuitable` where torch cannot do that."""
        self.module.to(dtype)
        kept: dict[fx.Node, Any] = {}
        given = (self.real[n] for n in self.graph.nodes if n.op == "placeholder")
        args = tuple(v.to(dtype) if v.is_floating_point() else v for v in given)
        try:
            watched(self.module, args, kept.__setitem__)
        except ILLEGAL as error:
            raise Unsuitable(f"{dtype}: {error}") from error
        if dtype == torch.float16 and not all(map(_has_room, self._numbers(kept))):
            raise Unsuitable("numbers too large for float16")
        for node, value in kept.items():
            self.hold(node, value)

    def _numbers(self, values: Mapping[fx.Node, Any]) -> list[Any]:
        return [*values.values(), *self.module.parameters(), *self.module.buffers()]


_ROOM = 64.0
"""How many times larger than in the model numbers may become when a rewrite is verified."""


def _has_room(value: Any) -> bool:
    """Whether a number of float16 is far from the end of its range: past it, what a rule merges
    may be finite where the ops one by one are not, and neither side is wrong.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.float16 or not value.numel():
        return True
    return float(value.detach().abs().max()) * _ROOM < torch.finfo(torch.float16).max
