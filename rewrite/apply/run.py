"""Runs a few nodes, or a plan, on given tensors in a given precision: the two sides that a
verification compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..graph.emit import Emitted
from ..graph.writes import writes
from ..ops.call import tensor_at
from ..ops.opspec import OpSpec
from ..ops.runtime_size import RuntimeSize, read_by, settled
from ..ops.spec import TensorSpec
from ..rules.scope import ParamRef
from .planned import Plan, Planned

Env = dict[Any, Any]


@contextmanager
def one_thread() -> Iterator[None]:
    """Small tensors in many groups: waiting for a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """`value` in `dtype` if it is a floating tensor; anything else as it is."""
    if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().to(dtype)
    return value


def run_nodes(
    module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    env: Env,
    moved: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Env:
    """Executes graph nodes in order on `env`, with the weights in `moved` put in place of the
    model's own.

    `dtype` None keeps every weight in its own precision (moved weights are rounded to it). The
    tensors of `env` are never written to: nodes that compute in place get copies. What each node
    gave is returned as it was then, whoever wrote to it later: a rewrite that keeps the node reads
    that.
    """
    if not any(writes(node, module) for node in nodes):
        return _run_all(module, nodes, dict(env), moved, dtype)
    made: Env = {}
    _run_all(module, nodes, _copies(env), moved, dtype, made)
    return {**made, **env}


def _run_all(
    module: fx.GraphModule,
    nodes: Sequence[fx.Node],
    env: Env,
    moved: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    made: Env | None = None,
) -> Env:
    """`made` receives copies of what nodes give."""
    with torch.no_grad():
        for node in nodes:
            env[node] = _run_node(module, node, env, moved, dtype)
            if made is not None:
                made |= _copies({node: env[node]})
    return env


def _copies(env: Env) -> Env:
    return {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in env.items()
    }


def _run_node(
    module: fx.GraphModule,
    node: fx.Node,
    env: Env,
    moved: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Any:
    def load(n: fx.Node) -> Any:
        return env[n] if n in env else _outside(module, n, moved, dtype)

    args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
    if node.op == "call_module":
        return _run_module(module, str(node.target), args, kwargs, moved, dtype)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _outside(
    module: fx.GraphModule, node: fx.Node, moved: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Any:
    """A weight, or a number that the graph computes elsewhere."""
    if node.op == "get_attr":
        return _weight(module, str(node.target), moved, dtype)
    value = node.meta.get("val")
    if isinstance(value, TensorSpec):
        raise KeyError(node.name)
    return value


def _weight(
    module: nn.Module, path: str, moved: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Tensor:
    own = tensor_at(module, path).detach()
    return cast(moved.get(path, own), dtype or (own.dtype if own.is_floating_point() else None))


def weights_read(
    module: nn.Module,
    nodes: Sequence[fx.Node],
    moved: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Env:
    """The weights among `nodes`: what a graph reads by name instead of through a layer."""
    held = [node for node in nodes if node.op == "get_attr"]
    return {node: _weight(module, str(node.target), moved, dtype) for node in held}


def _run_module(
    module: fx.GraphModule,
    path: str,
    args: Any,
    kwargs: Any,
    moved: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Any:
    layer = module.get_submodule(path)
    names = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]
    if dtype is None and not any(f"{path}.{name}" in moved for name in names):
        return layer(*args, **kwargs)
    weights = {name: _weight(module, f"{path}.{name}", moved, dtype) for name in names}
    return functional_call(layer, weights, args, kwargs)


# -- plans -----------------------------------------------------------------------------------------


def run_plan(plan: Plan, env: Env, dtype: torch.dtype | None) -> Env:
    """Executes planned ops in order on `env` through their declared meaning.

    Where types of numbers are named, and all runs in a wider one, what an op gives in a coarser
    type than others do is rounded to it once, and carried in the wide one.
    """
    env, finest = dict(env), None if dtype is None else plan.finest
    with torch.no_grad():
        for planned in plan.ops:
            value = _run_planned(planned, env, dtype)
            env[planned] = value if finest is None else _rounded(value, planned, finest)
    return env


def _rounded(value: Any, planned: Planned, finest: torch.dtype) -> Any:
    given = planned.specs[0].dtype
    if not isinstance(value, Tensor) or not given.is_floating_point:
        return value
    coarse = torch.finfo(given).eps > torch.finfo(finest).eps
    return value.to(given).to(value.dtype) if coarse else value


def _run_planned(planned: Planned, env: Env, dtype: torch.dtype | None) -> Any:
    inputs = dict.fromkeys((spec.name for spec in planned.op.inputs), None)
    inputs |= {
        spec.name: _operand(planned, value, env, dtype)
        for spec, value in zip(planned.op.inputs, planned.inputs, strict=False)
    }
    params = {name: param_value(planned, value, dtype) for name, value in planned.params.items()}
    attrs = settled(planned.attrs, env)
    if dtype is not None and planned.names_type:
        attrs = in_type(planned.op, attrs, dtype)
    return planned.op.run(inputs, params, attrs)


def in_type(op: OpSpec, attrs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The settings of an op with `dtype` wherever a type of numbers is named."""
    named = [name for name, spec in op.attrs.items() if spec.type == "dtype" and attrs.get(name)]
    return {**attrs, **dict.fromkeys(named, dtype)}


def run_emitted(plan: Plan, emitted: Mapping[Planned, Emitted], env: Env) -> Env:
    """Executes the layers and calls that will be inserted, with their final weights."""
    env = dict(env)
    with torch.no_grad():
        for planned in plan.ops:
            inputs = tuple(_operand(planned, value, env, None) for value in planned.inputs)
            missing = len(planned.op.inputs) - len(inputs)
            made = emitted[planned]
            if read_by(made.attrs):
                made = replace(made, attrs=settled(made.attrs, env))
            env[planned] = made.run(*inputs, *(None,) * missing)
    return env


def operand_value(value: Any, env: Env) -> Any:
    """What an operand holds: a computed value, a number the graph knows, or the operand itself."""
    if isinstance(value, tuple):
        return tuple(operand_value(item, env) for item in value)
    if isinstance(value, RuntimeSize):
        return value.run(env)
    if isinstance(value, (fx.Node, Planned)):
        return env[value] if value in env else value.meta.get("val")  # type: ignore[union-attr]
    return value


def _operand(planned: Planned, value: Any, env: Env, dtype: torch.dtype | None) -> Any:
    """As `operand_value`; numbers that the rule computed are kept as a weight is."""
    if isinstance(value, Tensor):
        return cast(value, dtype or planned.stored(value))
    return operand_value(value, env)


def param_value(planned: Planned, value: Any, dtype: torch.dtype | None) -> Any:
    """A weight of a planned op; in the type that it is to have where no other is asked for."""
    if isinstance(value, ParamRef):
        return cast(value.tensor.detach(), dtype)
    own = planned.stored(value) if isinstance(value, Tensor) else None
    return cast(value, dtype or own)
