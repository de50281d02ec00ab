"""Checkpoints of the working graph. Rewriting makes new tensors and never writes to old ones, so
weights are shared.
"""

from __future__ import annotations

from torch import fx


def snapshot(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph that shares the weights: rewriting never changes a tensor, it only makes
    new ones.
    """
    copied = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = copied.graph_copy(module.graph, mapping)
    old_output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    output = copied.output(result)
    output.meta.update(old_output.meta)
    copied._codegen = module.graph._codegen
    return fx.GraphModule(module, copied, type(module).__name__)


def finish(module: fx.GraphModule) -> None:
    """Makes the module's code follow its graph."""
    module.graph.lint()
    module.recompile()
