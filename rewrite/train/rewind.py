"""Weights under a name, and back to them: what a weight was is known by the ops that it belonged
to, since layers change their names when rules rewrite them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...grammar.diagnostics import Label, Span, fail
from ...grammar.tree import tree as t
from ..graph.snapshot import finish
from ..ops.call import OpCall, module_at, tensor_at
from ..rules.state import State
from .learner import begin, with_own_weights
from .settings import Number

Key = tuple[str, tuple[str, ...], str, int]
"""Op, the nodes of the captured model that it stands for, name of the weight, and which of equal
ones.
"""

Recorded = Mapping[Key, Tensor]


def recorded(state: State) -> Recorded:
    """The weights as they are; what was recorded is never written to."""
    return {key: tensor_at(state.module, path) for key, _, path in _weights(state)}


def _weights(state: State) -> Iterator[tuple[Key, OpCall, str]]:
    """Every weight that an op reads, and statistics, in the order of the graph."""
    seen: Counter[tuple[str, tuple[str, ...], str]] = Counter()
    for node in state.module.graph.nodes:
        call = state.view.call(node)
        for name, path in call.params.items() if call is not None else ():
            if call is None or path is None:
                continue
            key = call.op.name, tuple(node.meta.get("origins") or (node.name,)), name
            yield (*key, seen[key]), call, path
            seen[key] += 1


def rewind(state: State, to: Recorded, span: Span) -> None:
    """The state goes on with recorded numbers; what rules say of weights holds of these, too: zeros
    stay where a mask has them. Raises F106 for a weight that was not recorded in its shape.
    """
    _renew(state, lambda key, call, path: _same(state, to, key, path, span))


def _same(state: State, to: Recorded, key: Key, path: str, span: Span) -> Tensor:
    now, then = tensor_at(state.module, path), to.get(key)
    if then is None or then.shape != now.shape:
        what = "was not there" if then is None else f"had the shape {list(then.shape)}"
        message = f"`{path}` {what} when the checkpoint was taken"
        hint = "rewind where layers have the shapes that they had"
        raise fail("F106", message, Label(span), help=hint)
    return then


def redraw(state: State, seed: int, span: Span) -> None:
    """The same with numbers that each layer draws as when it was made (`reset_parameters`). Raises
    F106 for a weight of no such layer.
    """
    layers: dict[str, nn.Module] = {}

    def drawn(key: Key, call: OpCall, path: str) -> Tensor:
        owner, _, name = path.rpartition(".")
        if owner not in layers:
            layers[owner] = _drawn(module_at(state.module, owner) if owner else None, path, span)
        return getattr(layers[owner], name)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _renew(state, drawn)


def seed_of(target: t.Call, number: Number) -> int:
    """Of `drawn(seed = 1)`. Raises F106."""
    named = {keyword.name.text for keyword in target.keywords}
    given = [*target.args, *(keyword.value for keyword in target.keywords)]
    value, *more = [number(one) for one in given] or [0]
    if named - {"seed"} or more or type(value) is not int or value < 0:
        message, hint = "`drawn` takes a whole number, 0 or more", "rewind drawn(seed = 1)"
        raise fail("F106", message, Label(target.span), help=hint)
    return value


def _drawn(layer: nn.Module | None, path: str, span: Span) -> nn.Module:
    if layer is None or not callable(getattr(layer, "reset_parameters", None)):
        message = f"`{path}` belongs to no layer that can draw it"
        hint = "only layers with `reset_parameters` draw weights: nn.Linear, nn.Conv2d ..."
        raise fail("F106", message, Label(span), help=hint)
    copied: Any = copy.deepcopy(layer)
    copied.reset_parameters()
    return copied


@torch.no_grad()
def _renew(state: State, number: Callable[[Key, OpCall, str], Tensor]) -> None:
    finish(state.module)
    graph = with_own_weights(state.module)
    kept = begin(state, graph)
    new = {path: number(key, call, path) for key, call, path in _weights(state)}
    for path, tensor in new.items():
        _write(graph, path, tensor)
    for paths, constraints in kept.items():
        value = graph.get_parameter(paths[0]).detach()
        for one in constraints:
            value = one(value, training=False)
        _write(graph, paths[0], value)
    state.reset(graph)
    state.samples.forget()


def _write(graph: fx.GraphModule, path: str, numbers: Tensor) -> None:
    tensor_at(graph, path).data.copy_(numbers)
