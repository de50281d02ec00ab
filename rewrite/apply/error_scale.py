"""The magnitude of every value on both sides of one application: what rounding is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx

from ..match.match import result_parts
from ..match.site import Site
from ..measure.rounding_model import absolute, magnitude, terms
from ..ops.call import OpCall, tensor_at
from ..ops.runtime_size import settled
from ..rules.scope import ParamRef
from .planned import Plan, Planned
from .run import Env, cast, in_type, operand_value


class Scale:
    """Magnitudes of both sides, op by op, in float64: a sum of magnitudes may overflow where the
    signed sum does not.
    """

    def __init__(
        self, site: Site, plan: Plan, doubles: Mapping[str, Tensor], left: Env, right: Env
    ) -> None:
        self.doubles, self.terms = doubles, 1
        inside = set(site.nodes)
        self.known: Env = {n: absolute(value) for n, value in left.items() if n not in inside}
        for call in site.calls:
            scale = self.known[call.node] = self._of_call(call, left)
            parts = result_parts(call.node).items() if isinstance(scale, (tuple, list)) else ()
            self.known.update((part, absolute(scale[index])) for index, part in parts)
        for planned in plan.ops:
            self.known[planned] = self._of_planned(planned, right)

    def of(self, node: fx.Node, after: Any) -> tuple[Any, int]:
        """The larger scale of the two sides of one output, and the terms of its sums."""
        scales = [self.known[key] for key in (node, after) if key in self.known]
        scale = scales[0]
        for other in scales[1:]:
            scale = torch.maximum(scale, other.to(scale.dtype))
        return scale, self.terms

    def _of_call(self, call: OpCall, left: Env) -> Any:
        params = {name: self._weight(call, path) for name, path in call.params.items()}
        inputs = dict(zip((spec.name for spec in call.op.inputs), call.inputs, strict=False))
        attrs = settled(call.attrs, left)
        return self._scale(call.op, inputs, params, attrs, left[call.node])

    def _weight(self, call: OpCall, path: str | None) -> Any:
        if path is None or path in self.doubles:
            return None if path is None else self.doubles[path]
        return cast(tensor_at(call.root, path).detach(), torch.float64)

    def _of_planned(self, planned: Planned, right: Env) -> Any:
        params = {n: cast(_tensor(p), torch.float64) for n, p in planned.params.items()}
        names = (spec.name for spec in planned.op.inputs)  # absent ones at the end are left out
        inputs = dict(zip_longest(names, planned.inputs))
        attrs = settled(planned.attrs, right)
        return self._scale(planned.op, inputs, params, attrs, right[planned])

    def _scale(
        self, op: Any, inputs: Mapping[str, Any], params: Mapping[str, Any], attrs: Any, value: Any
    ) -> Any:
        scales = {
            name: absolute(operand_value(operand, self.known)) for name, operand in inputs.items()
        }
        self.terms = max(self.terms, terms(op, scales, params))
        if op.names_type(attrs) and isinstance(value, Tensor) and value.is_floating_point():
            attrs = in_type(op, attrs, torch.float64)  # the type of magnitudes

        def run(i: Mapping[str, Any], p: Mapping[str, Any]) -> Any:
            with torch.no_grad():
                return op.run(i, p, attrs)

        return magnitude(op, run, scales, params, value)


def _tensor(value: Any) -> Any:
    return value.tensor.detach() if isinstance(value, ParamRef) else value
