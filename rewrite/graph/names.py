"""Inputs that are called like something that the generated code itself needs: `nan`, `torch`.

torch.fx gives such an input another name inside of the function, but it stays a parameter under its
own, and every other use of that name then means the input.
"""

from __future__ import annotations

import ast
import math
from typing import Any

from torch import fx

from ...grammar.diagnostics import Label, fail

_NUMBERS = {"nan": math.isnan, "inf": math.isinf}


def free_names(module: fx.GraphModule) -> None:
    """Write numbers that an input hides as calls of `float`. The module's code must be that of its
    graph, and is again afterwards. Raises M004 for what else an input hides.
    """
    if not _hidden(module):
        return
    for name in _hidden(module) & _NUMBERS.keys():
        _spell_out(module, name)
    module.recompile()
    for name in sorted(_hidden(module)):
        raise fail(
            "M004",
            f"the input `{name}` hides what the graph's generated code calls `{name}`",
            Label(None, where=f"forward({name})"),
            help=f"rename the parameter `{name}` of forward",
        )


def _hidden(module: fx.GraphModule) -> set[str]:
    """The inputs whose name the code uses for something else as well."""
    inputs = module.graph.find_nodes(op="placeholder")
    names = {str(node.target).lstrip("*"): node.name for node in inputs}
    renamed = {name for name, inside in names.items() if name != inside}
    if not renamed:
        return set()
    *_, function = ast.parse(module.code.strip()).body  # behind what torch.fx is to wrap
    assert isinstance(function, ast.FunctionDef)
    read = [
        part.id
        for line in function.body
        for part in ast.walk(line)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)
    ]
    # Once to give the input its other name.
    return {name for name in renamed if read.count(name) > 1}


def _spell_out(module: fx.GraphModule, name: str) -> None:
    """Let calls make every number that is printed as `name`, or as `-name`."""
    first = next(node for node in module.graph.nodes if node.op != "placeholder")
    made: dict[str, fx.Node] = {}

    def spelled(value: Any) -> Any:
        if not isinstance(value, float) or not _NUMBERS[name](value):
            return value
        text = str(value)
        if text not in made:
            with module.graph.inserting_before(first):
                made[text] = module.graph.call_function(float, (text,))
            made[text].meta.update(val=value, site="", source="", mutates=(), aliases=())
        return made[text]

    for node in list(module.graph.nodes):
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), spelled)  # type: ignore[assignment]
