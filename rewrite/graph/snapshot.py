"""Checkpoints of the working graph. Rewriting makes new tensors and never writes to old ones, so
weights are shared.
"""

from __future__ import annotations

from torch import fx, nn

from ..torch_internals import codegen_of, mark_untraced
from .names import free_names


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
    copied.set_codegen(codegen_of(module.graph))
    return graph_module(module, copied)


def graph_module(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A module with what `graph` refers to of `root`. What is in no `state_dict` of the root is in
    none of it either: buffers that are not persistent, and plain tensors, which become buffers.
    """
    module = fx.GraphModule(root, graph, type(root).__name__)
    for path, part in module.named_modules():
        # Modules come as they are; torch.fx makes new ones around tensors that are read by name.
        if type(part) is nn.Module or part is module:
            part._non_persistent_buffers_set.update(_unsaved(root, path, part))
    return module


def _unsaved(root: nn.Module, path: str, part: nn.Module) -> set[str]:
    owner = root.get_submodule(path)
    if owner is part:
        return set()
    saved = owner._buffers.keys() - owner._non_persistent_buffers_set
    return set(part._buffers) - saved


def finish(module: fx.GraphModule, *, done: bool = False) -> None:
    """Makes the module's code follow its graph; `done`: which nobody changes any more. Raises M004
    for an input whose name that code needs for something else.
    """
    module.graph.lint()
    mark_untraced(module.graph, done=done)
    module.recompile()
    free_names(module)
