"""Outputs lie in memory as those of the model did: integer kernels answer in channels_last, on
which a `view` of the caller fails.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from ..journal import Applied
from ..measure.compare import outputs
from ..ops.spec import TensorSpec
from ..rules.state import State
from ..torch_internals import tree_leaves


def keep_layout(state: State, original: fx.GraphModule) -> None:
    """Puts `contiguous` behind each output that was so, on the example, and no longer is."""
    end = state.module.graph.output_node()
    nodes = tree_leaves(end.args[0])
    if not (state.journal.of(Applied) and any(map(_has_formats, nodes))):
        return
    pairs = [outputs(model, state.samples.inputs) for model in (original, state.module)]
    if len({len(nodes), *map(len, pairs)}) > 1:
        return  # something of torch's own that holds several
    for node, before, after in dict.fromkeys(zip(nodes, *map(_contiguous, pairs), strict=True)):
        if before and not after:
            _laid_out(state, node, end)


def _has_formats(node: Any) -> bool:
    """Numbers of two axes and less have one format."""
    spec = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(spec, TensorSpec) and len(spec.shape) > 2


def _contiguous(values: list[Any]) -> list[bool]:
    return [isinstance(value, Tensor) and value.is_contiguous() for value in values]


def _laid_out(state: State, node: fx.Node, end: fx.Node) -> None:
    with state.module.graph.inserting_before(end):
        new = state.module.graph.call_method("contiguous", (node,))
    same = {name: node.meta.get(name) for name in ("val", "site", "source")}
    new.meta.update(same, mutates=(), aliases=())
    end.replace_input_with(node, new)
    state.view.add(new)
