"""The perturbed original of a site: its ops with other weights, reading other values."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from ..graph.emit import Emitted, constant
from ..match.site import Site
from .planned import Plan, flat
from .run import Env, operand_value, param_value, run_nodes, run_plan


def run_perturbed(
    module: fx.GraphModule,
    site: Site,
    plan: Plan,
    env: Env,
    moved: Mapping[str, Tensor],
    dtype: torch.dtype | None,
) -> Env:
    """As `run_nodes` of the matched ops, which read the values that `perturb` gives them. Whoever
    else reads these finds them in the result as they were. What the matched ops give is what
    `perturb` makes of it.
    """
    given = {node: other for node, other in plan.exchanged.items() if node in site.nodes}
    read = {node: other for node, other in plan.exchanged.items() if node not in given}
    found = run_nodes(module, site.nodes, {**env, **_instead(read, env, dtype)}, moved, dtype)
    found |= {node: env[node] for node in read}
    return {**found, **_instead(given, found, dtype)}


def _instead(others: Mapping[fx.Node, Plan], env: Env, dtype: torch.dtype | None) -> Env:
    """What stands for each value."""
    return {node: _outcome(other, env, dtype) for node, other in others.items()}


def _outcome(other: Plan, env: Env, dtype: torch.dtype | None) -> object:
    (new,) = other.outputs.values()
    return operand_value(new, run_plan(other, env, dtype))


def perturbed_model(module: fx.GraphModule, site: Site, plan: Plan) -> fx.GraphModule:
    """A copy of the whole model, perturbed at the site."""
    changed = copy.deepcopy(module)
    for path, value in plan.moved.items():
        owner, _, name = path.rpartition(".")
        held = getattr(changed.get_submodule(owner), name)
        with torch.no_grad():
            held.copy_(value.to(held.dtype))
    twins = {twin.name: twin for twin in changed.graph.nodes}
    made = {n: _exchange(changed, site, n, other, twins) for n, other in plan.exchanged.items()}
    for node in (node for node in made if node in site.nodes):
        # Who asks for it by its name gets what all its readers get.
        twin, last = twins[node.name], made[node]
        twin.name, last.name = last.name, twin.name
    if plan.exchanged:
        changed.recompile()
    return changed


def _exchange(
    module: fx.GraphModule,
    site: Site,
    node: fx.Node,
    other: Plan,
    twins: Mapping[str, fx.Node],
) -> fx.Node:
    """Puts the ops of `other` behind the node's twin: for the twins of the matched ops alone, for
    all who read it where it is one of these. Returns what stands for it.
    """
    made: dict[object, fx.Node] = {}
    last = twins[node.name]
    for planned in other.ops:
        for value in (v for v in flat(planned.inputs) if isinstance(v, Tensor)):
            path, kept = f"_perturbed_{last.name}_{len(made)}", value.to(planned.stored(value))
            made[value] = constant(module, last.next, path, kept)
        operands = tuple(_twin(value, twins, made) for value in planned.inputs)
        operands += (None,) * (len(planned.op.inputs) - len(operands))
        params = {name: param_value(planned, v, None) for name, v in planned.params.items()}
        call = Emitted(planned.op, operands, params, planned.attrs, None)
        last = call.insert(module, last.next, f"_perturbed_{last.name}")
        last.meta["val"] = planned.specs[0]
        made[planned] = last
    new = set(made.values())
    inside = {twins[inner.name] for inner in site.nodes}
    others = {*twins[node.name].users} - new - inside
    readers = others if node in site.nodes else inside
    for reader in readers:
        reader.replace_input_with(twins[node.name], last)
    return last


def _twin(value: object, twins: Mapping[str, fx.Node], made: Mapping[object, fx.Node]) -> object:
    if isinstance(value, tuple):
        return tuple(_twin(item, twins, made) for item in value)
    if value in made:
        return made[value]
    return twins[value.name] if isinstance(value, fx.Node) else value
