"""A cut under way as it was before its next step, to go back to: what features cost is found out by
cutting them, and most of the cuts that are tried are not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from .cut_builder import Work

_SETS = ("tensors", "parameters", "numbers", "layers", "gone", "respelled")


class Mark:
    """What a step may change. It can be undone as long as it drops no node of the new graph."""

    def __init__(self, work: Work) -> None:
        self.work, self.kept = work, work.kept
        self.sets = {name: getattr(work, name).copy() for name in _SETS}
        self.nodes = [(node, _spelling(node)) for node in work.module.graph.nodes]
        self.modules = [(held, dict(held)) for module in _own(work) for held in _holdings(module)]

    def undo(self) -> None:
        """Takes back what was done since, `work.fresh` nodes too."""
        work = self.work
        assert not work.dropped, "a node that was erased is not made again"
        for node, spelling in self.nodes:
            if not all(a is b for a, b in zip(spelling, _spelling(node), strict=True)):
                node.op, node.target, node.args, node.kwargs, node.meta["val"] = spelling
        for node in reversed(work.fresh):
            work.module.graph.erase_node(node)
        for held, known in self.modules:
            held.clear()
            held.update(known)
        for name, known in self.sets.items():
            setattr(work, name, known)
        work.kept, work.fresh = self.kept, []


def _spelling(node: fx.Node) -> tuple[Any, ...]:
    return node.op, node.target, node.args, node.kwargs, node.meta.get("val")


def _own(work: Work) -> Iterator[nn.Module]:
    """The modules that the old model does not hold."""
    old = set(work.flow.view.root.modules())
    return (module for module in work.module.modules() if module not in old)


def _holdings(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield from (vars(module), module._modules, module._parameters, module._buffers)
