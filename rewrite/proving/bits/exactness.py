"""Was anything rounded? The premise under which two computations must give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...apply.engine import VerifiedRewrite
from ...apply.error_scale import Scale
from ...apply.perturbed import run_perturbed
from ...apply.run import operand_value, run_plan, weights_read
from ...apply.verify import named_weights
from ...measure.rounding_model import tolerance
from ...ops.call import tensor_at
from ...ops.spec import TensorSpec
from ...rules.state import State

ROOM = 64.0
"""How many times the usual rounding error a rule's own numbers may add."""

ENDLESS = 1000
"""Bits behind the point of what is no finite number: the root of a negative variance, say."""


class Sums:
    """What both sides of one application compute, before it is applied.

    rounded: where a number may not have fitted into 53 bits; "" if nowhere. rounding: how much
    rounding can change an output, at most.
    """

    def __init__(self, state: State, ready: VerifiedRewrite) -> None:
        site, plan = ready.site, ready.plan
        tensors = [n for n in site.inputs if isinstance(n.meta.get("val"), TensorSpec)]
        env = dict(state.samples.values(state.module, tensors))
        extra = [n for n in plan.reads if n not in env and n not in site.nodes]
        env.update(state.samples.values(state.module, [n for n in extra if n.op != "get_attr"]))
        env |= weights_read(state.module, named_weights(site, plan), plan.moved, None)
        self.left = run_perturbed(state.module, site, plan, env, plan.moved, None)
        kept = {node: value for node, value in self.left.items() if node not in site.gone}
        self.right = run_plan(plan, kept, None)
        doubles = {**site.scope.doubles, **plan.moved}
        self.scale = Scale(site, plan, doubles, self.left, self.right)
        self.rounded = next(self._rounded(ready), "")
        scales = [self.scale.of(node, plan.outputs[name]) for name, node in site.outputs.items()]
        largest = max((float(s.max()) for s, _ in scales if s.numel()), default=0.0)
        self.rounding = ROOM * largest * tolerance(torch.float64, self.scale.terms)

    def _rounded(self, ready: VerifiedRewrite) -> Iterator[str]:
        moves = ready.plan.moved
        for call in ready.site.calls:
            params = {
                n: p and moves.get(p, tensor_at(call.root, p)) for n, p in call.params.items()
            }
            yield from self._of(call.op, call.inputs, params, call.attrs, call.node, self.left)
        for new in ready.plan.ops:
            params = {n: getattr(p, "tensor", p) for n, p in new.params.items()}
            yield from self._of(new.op, new.inputs, params, new.attrs, new, self.right)

    def _of(
        self, op: Any, inputs: Any, params: Any, attrs: Any, key: Any, env: Any
    ) -> Iterator[str]:
        values = [operand_value(value, env) for value in inputs]
        behind = _behind_the_point(op, values, params, attrs)
        scale = torch.as_tensor(self.scale.known[key] if behind else 0.0)
        if behind is None:
            yield f"`{op.name}` rounds"
        elif behind and scale.numel() and float(scale.max()) >= 2.0 ** max(53 - behind, -ENDLESS):
            yield f"a sum of `{op.name}` needs {behind} bits behind the point"


def _behind_the_point(op: Any, values: list[Any], params: Any, attrs: Any) -> int | None:
    """Bits behind the point of the products that an op adds up; 0 where it computes nothing, None
    where that is not known.
    """
    if op.traits & {"unrounded", "movement"}:
        return 0
    if op.keeps_statistics and params["running_var"] is None:
        return None  # the variance is the batch's
    if op.keeps_statistics:
        gain = params["weight"] if params["weight"] is not None else 1.0
        factor = gain / (params["running_var"] + attrs["eps"]).sqrt()
        product = max(_bits(values[0]), _bits(params["running_mean"])) + _bits(factor)
        return max(product, _bits(params["bias"]))
    if "additive" in op.traits:
        return max(map(_bits, values)) + max(map(_bits, _numbers(attrs)), default=0)
    if {"linear_in_x", "elementwise"} <= op.traits:
        return _multiplied(op, values, attrs)
    if "linear_in_x" in op.traits:
        weights = [p for name, p in params.items() if name != "bias"]
        return max(sum(map(_bits, (*values, *weights))), _bits(params.get("bias")))
    return None


def _numbers(attrs: Any) -> list[Any]:
    return [value for value in attrs.values() if isinstance(value, (int, float))]


def _multiplied(op: Any, values: list[Any], attrs: Any) -> int | None:
    """Of x * f(y), where f may be 1 / y: what the op gives for 1 in place of x. None where some
    setting makes it another function.
    """
    first, *others = (spec.name for spec in op.inputs)
    beside = dict(zip(others, values[1:], strict=True))
    factor = op.run({first: torch.ones((), dtype=torch.float64), **beside}, {}, attrs)
    found = op.run({first: values[0], **beside}, {}, attrs)
    same = bool((torch.as_tensor(found) == values[0] * factor).all())
    return _bits(values[0]) + _bits(factor) if same else None


def _bits(value: Any) -> int:
    """Bits behind the point of the number that has most of them."""
    if value is None or (isinstance(value, Tensor) and not value.is_floating_point()):
        return 0
    double = torch.as_tensor(value, dtype=torch.float64).detach()
    if not bool(double.isfinite().all()):
        return ENDLESS
    mantissa, exponent = torch.frexp(double)
    whole = (mantissa * 2.0**53).long()
    lowest = torch.where(whole == 0, 0, exponent - 53 + (whole & -whole).double().log2())
    return max(0, int(-lowest.min())) if lowest.numel() else 0
