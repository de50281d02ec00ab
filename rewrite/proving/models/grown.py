"""A generated model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from ...ops.spec import TensorSpec
from ...rules.rule import CompiledRule
from ...torch_internals import tree_leaves
from .pattern_builder import Planted


@dataclass(slots=True)
class Grown:
    """A model with instances of a rule's left side in it, and inputs to run it on. `has_data`: the
    user has given calibration data. `seed`: of what else is drawn for it.
    """

    rule: CompiledRule
    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    planted: list[Planted]
    has_data: bool
    seed: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no result of the model holds a number."""
        end = next(node for node in reversed(self.module.graph.nodes) if node.op == "output")
        specs = [spec for spec in tree_leaves(end.meta["val"]) if isinstance(spec, TensorSpec)]
        return all(0 in spec.shape for spec in specs)
