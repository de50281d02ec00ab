"""Verification of one application: does the rewrite compute what the perturbed original computes?

The perturbed matched nodes and the planned ops run on the same inputs, once in float64 with unrounded weights (this sees
wrong algebra: its tolerance is a few thousand units of 1e-16) and once in the model's own precision (this sees a weight
stored in too small a type). The tolerance is scaled by the magnitude of the sums inside, see magnitude.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .construct import Plan, Planned
from .evaluate import ParamRef
from .journal import Verdict
from .emit import Emitted
from .local import Env, cast, load, run_emitted, run_nodes, run_plan
from .magnitude import magnitude, tolerance
from .probe import Probe, probes
from .site import Site
from .spec import TensorSpec
from .state import State
from .call import Call, tensor_at


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of both sides: the largest difference, and what was allowed where it is relatively largest."""

    name: str
    worst: float
    allowed: float
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.worst / self.allowed if self.allowed > 0 else (0.0 if self.worst == 0 else float("inf"))


def check_shapes(site: Site, plan: Plan) -> Verdict:
    """Every output keeps shape and dtype; answered from declarations, so nothing runs."""
    for name, node in site.outputs.items():
        before, after = node.meta.get("val"), spec_after(plan.outputs[name])
        if before != after:
            return Verdict("shapes", "proved", False, detail=f"`{name}` is {before} before and {after} after")
    return Verdict("shapes", "proved", True, detail="from op declarations")


def spec_after(value: Any) -> Any:
    """What is known of a value that a plan gives to an output."""
    if isinstance(value, Planned):
        return value.specs[0]
    return value.meta.get("val") if isinstance(value, fx.Node) else value


def check_exact(state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted]) -> tuple[Verdict, ...]:
    """The rewrite against the perturbed original: in float64, then in the model's own precision."""
    nodes = [call.node for call in site.calls]
    extra = [node for node in plan_inputs(plan) if node not in nodes]
    inputs = list(dict.fromkeys([*site.inputs, *extra]))
    tries = probes(state, inputs, nodes)
    double = [_compare(state, site, plan, emitted, probe, torch.float64) for probe in tries]
    own = [_compare(state, site, plan, emitted, probe, None) for probe in tries[:1]]
    return (_verdict("rewrite equals perturbed original, float64", double), _verdict("the same, in the model's dtype", own))


def plan_inputs(plan: Plan) -> list[fx.Node]:
    """Graph nodes that planned ops read."""
    found: dict[fx.Node, None] = {}
    for value in [*plan.outputs.values(), *(item for planned in plan.ops for item in flat(planned.inputs))]:
        if isinstance(value, fx.Node):
            found[value] = None
    return list(found)


def flat(values: Sequence[Any]) -> list[Any]:
    return [leaf for value in values for leaf in (flat(value) if isinstance(value, tuple) else [value])]


def _verdict(claim: str, runs: Sequence[Sequence[Comparison]]) -> Verdict:
    comparisons = [c for run in runs for c in run]
    worst = max(comparisons, key=lambda c: c.ratio, default=None)
    if worst is None:
        return Verdict(claim, "not checked", True, detail="the rule defines no output")
    holds = worst.ratio <= 1.0 and not worst.note
    return Verdict(claim, "tested", holds, len(runs), worst.worst, worst.allowed, worst.note or f"`{worst.name}`")


def _compare(
    state: State, site: Site, plan: Plan, emitted: Mapping[Planned, Emitted], probe: Probe, dtype: torch.dtype | None
) -> list[Comparison]:
    """Both sides on one probe. In the model's own precision the new layers themselves run, in float64 their meaning."""
    nodes = [call.node for call in site.calls]
    env = {node: cast(value, dtype or _own_dtype(node)) for node, value in probe.values.items()}
    left = run_nodes(state.module, nodes, env, plan.moved, dtype)
    outside = {node: value for node, value in left.items() if node in probe.values or node not in _removed(site)}
    right = run_plan(plan, outside, dtype) if dtype is not None else run_emitted(plan, emitted, outside)
    scale = _Scale(state, site, plan, left, right, env, dtype)
    return [
        _difference(name, left[node], load(plan.outputs[name], right), scale.of(node, plan.outputs[name]))
        for name, node in site.outputs.items()
    ]


def _own_dtype(node: fx.Node) -> torch.dtype | None:
    spec = node.meta.get("val")
    return spec.dtype if isinstance(spec, TensorSpec) else None


def _removed(site: Site) -> set[fx.Node]:
    return {call.node for call in site.removed}


def _difference(name: str, left: Any, right: Any, scale: Any) -> Comparison:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return Comparison(name, 0.0 if left == right else float("inf"), 0.0)
    if left.shape != right.shape or left.dtype != right.dtype:
        return Comparison(name, float("inf"), 0.0, f"`{name}` is {_spec(left)} before and {_spec(right)} after")
    if not left.is_floating_point():
        return Comparison(name, float((left != right).sum()), 0.0)
    if not torch.equal(left.isnan(), right.isnan()):
        return Comparison(name, float("inf"), 0.0, f"`{name}` is NaN at other places")
    return _floating(name, left, right, scale, tolerance(left.dtype))


def _floating(name: str, left: Tensor, right: Tensor, scale: Tensor, factor: float) -> Comparison:
    same = (left == right) | left.isnan()
    apart = torch.where(same, 0.0, (left.double() - right.double()).abs())
    allowed = (scale.double().abs() * factor).clamp_min(torch.finfo(left.dtype).tiny).broadcast_to(apart.shape)
    if not apart.numel():
        return Comparison(name, 0.0, 0.0)
    index = int((apart / allowed).argmax())
    return Comparison(name, float(apart.flatten()[index]), float(allowed.reshape(-1)[index]))


def _spec(value: Tensor) -> TensorSpec:
    return TensorSpec(tuple(value.shape), value.dtype)


class _Scale:
    """Magnitudes of both sides, op by op."""

    def __init__(
        self, state: State, site: Site, plan: Plan, left: Env, right: Env, env: Env, dtype: torch.dtype | None
    ) -> None:
        self.state, self.plan, self.dtype = state, plan, dtype
        self.known: Env = {node: _absolute(value) for node, value in env.items()}
        for call in site.calls:
            self.known[call.node] = self._of_call(call, left[call.node])
        for planned in plan.ops:
            self.known[planned] = self._of_planned(planned, right[planned])

    def of(self, node: fx.Node, after: Any) -> Tensor:
        """The larger scale of the two sides of one output."""
        scales = [self.known[key] for key in (node, after) if key in self.known]
        scale = scales[0]
        for other in scales[1:]:
            scale = torch.maximum(scale, other.to(scale.dtype))
        return scale

    def _of_call(self, call: Call, value: Any) -> Any:
        params = {name: self._weight(path) for name, path in call.params.items()}
        inputs = dict(zip((spec.name for spec in call.op.inputs), call.inputs, strict=False))
        return self._scale(call.op, inputs, params, call.attrs, value)

    def _weight(self, path: str | None) -> Any:
        if path is None:
            return None
        own = tensor_at(self.state.module, path).detach()
        return cast(self.plan.moved.get(path, own), self.dtype or (own.dtype if own.is_floating_point() else None))

    def _of_planned(self, planned: Planned, value: Any) -> Any:
        params = {n: cast(_tensor(p), self.dtype or planned.dtype) for n, p in planned.params.items()}
        inputs = dict(zip((spec.name for spec in planned.op.inputs), planned.inputs, strict=False))
        return self._scale(planned.op, inputs, params, planned.attrs, value)

    def _scale(self, op: Any, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Any, value: Any) -> Any:
        scales = {name: load(operand, self.known) for name, operand in inputs.items()}

        def run(i: Mapping[str, Any], p: Mapping[str, Any]) -> Any:
            with torch.no_grad():
                return op.run(i, p, attrs)

        return magnitude(op.name, "linear_in_x" in op.traits, run, scales, params, value)


def _tensor(value: Any) -> Any:
    return value.tensor.detach() if isinstance(value, ParamRef) else value


def _absolute(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


# -- the approximate half ------------------------------------------------------------------------------------------


def site_error(state: State, site: Site, plan: Plan) -> tuple[Callable[[str], float], int]:
    """A function from an output's name to its relative L2 error under the perturbation, and the number of samples.

    Both sides run on what the matched ops see on the calibration inputs, in the model's own precision.
    """
    nodes = [call.node for call in site.calls]
    tensors = [node for node in site.inputs if isinstance(node.meta.get("val"), TensorSpec)]
    values = state.samples.values(state.module, tensors)
    before = run_nodes(state.module, nodes, values, {}, None)
    after = run_nodes(state.module, nodes, values, plan.moved, None) if plan.moved else run_plan(plan, dict(before), None)
    count = next((int(v.shape[0]) for v in values.values() if isinstance(v, Tensor) and v.dim()), 0)

    def error(name: str) -> float:
        node = site.outputs[name]
        new = after[node] if plan.moved else load(plan.outputs[name], after)
        return relative_error(before[node], new)

    return error, count


def relative_error(reference: Tensor, value: Tensor) -> float:
    """||value - reference|| / ||reference||, in float64; 0 for two zero tensors."""
    apart = (value.double() - reference.double()).norm()
    return float(apart / reference.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


