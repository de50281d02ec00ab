"""How large the sums inside a computation are: the scale against which rounding errors are judged.

For y = W x the rounding error is bounded by gamma_n (|W| |x|), not by a multiple of |y|, which may
be small through cancellation (Higham, Accuracy and Stability, section 3.5). Running the same ops on
absolute values gives |W| |x|. The worst case grows with the number n of terms; with probability
near one the error stays below a few sqrt(n) u (|W| |x|) (Higham and Mary, 2019). The sqrt(n) is
needed: where one term dominates, a bias in a channel whose weights have died, say, every further
addition rounds at its size (13 units were seen for 192 terms). In float64, where algebra is judged,
the bound stays ten orders of magnitude below any mistake in a rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..ops.opspec import OpSpec

ULPS = 8.0
"""Units in the last place that both sides together may differ by, for each sqrt of a term."""

_PLAIN = frozenset({"linear_in_x", "movement"})
"""Traits of ops whose scale is what they give for magnitudes: a sharper bound than the one for any
function.
"""


def magnitude(
    op: OpSpec, run: Any, inputs: Mapping[str, Any], params: Mapping[str, Any], value: Any
) -> Any:
    """The scale of one op's result, from the scales of its inputs. `run(inputs, params)` computes
    the op.
    """
    if op.keeps_statistics and params["running_mean"] is not None:
        return run(inputs, _shifted(params))
    if op.traits & {"additive", "addend"}:
        return _sum(run, inputs)
    if op.traits & _PLAIN:
        return absolute(run(inputs, {key: absolute(p) for key, p in params.items()}))
    scales = [scale for scale in inputs.values() if isinstance(scale, Tensor)]
    result = run(inputs, params)
    if (
        not isinstance(result, Tensor)
        or not isinstance(value, Tensor)
        or not value.is_floating_point()
    ):
        return result
    # A function may overflow at the scale of its input where it does not at the input itself.
    widest = _finite(result).maximum(_finite(value).to(result.dtype))
    widest = widest * (1.0 + _inner_sums(op, inputs))
    same = next((scale for scale in scales if scale.shape == result.shape), None)
    if same is not None:
        return torch.maximum(widest, same.to(widest.dtype))
    return torch.full_like(widest, float(widest.max())) if widest.numel() else widest


def _finite(value: Tensor) -> Tensor:
    """Magnitudes; 0 where a number is nan or infinite, which has to be the same on both sides."""
    return torch.where(value.isfinite(), value.abs(), 0.0)


def _inner_sums(op: OpSpec, inputs: Mapping[str, Any]) -> float:
    """The largest sum of products that an op takes a function of (`sums E`), in magnitudes. It is
    an exponential: what rounding moves the logits of attention by moves its results by as large a
    share.
    """
    factors = [
        inputs[spec.name].flatten(0, -2)
        for spec in op.inputs
        if spec.shape is not None
        and spec.shape.after
        and spec.shape.after[-1].alone in op.sums
        and isinstance(inputs.get(spec.name), Tensor)
    ]
    if len(factors) != 2 or not all(factor.numel() for factor in factors):
        return 0.0
    # Of each position the largest: no position of one is paired with all of the other here.
    largest = (factors[0].amax(0).double() * factors[1].amax(0).double()).sum()
    return float(largest.nan_to_num(0.0, 0.0))


def _sum(run: Any, inputs: Mapping[str, Any]) -> Any:
    """|x| + |y|: with magnitudes alone a difference would give | |x| - |y| |."""
    name = next(name for name, value in inputs.items() if not _is_bool(value))
    negated = {**inputs, name: -inputs[name]}
    return torch.maximum(absolute(run(inputs, {})), absolute(run(negated, {})))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)


def absolute(value: Any) -> Any:
    """The magnitude of a number, a floating tensor, or each of several, in float64; anything else
    as it is.
    """
    if isinstance(value, (tuple, list)):
        return tuple(map(absolute, value))
    if isinstance(value, Tensor):
        return value.abs().double() if value.is_floating_point() else value
    return abs(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _shifted(params: Mapping[str, Any]) -> dict[str, Any]:
    """(|x| + |mean|) |g| / sqrt(var + eps) + |b|."""
    out = {key: absolute(p) for key, p in params.items()}
    return {**out, "running_mean": -out["running_mean"]}


def terms(op: OpSpec, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> int:
    """How many products one output element of an op sums, at most."""
    weights = [p for p in params.values() if isinstance(p, Tensor) and p.dim() >= 2]
    found = [p.numel() // max(1, min(p.shape[:2])) for p in weights]
    return max([*found, *_contracted(op, inputs)], default=1)


def _contracted(op: OpSpec, inputs: Mapping[str, Any]) -> Iterator[int]:
    """The sizes of dimensions that several inputs have and no result."""
    sizes: dict[str, list[int]] = {}
    for spec in op.inputs:
        value, shape = inputs.get(spec.name), spec.shape
        if shape is None or not isinstance(value, Tensor) or value.dim() < shape.least:
            continue
        places = [*enumerate(shape.before), *enumerate(shape.after, -len(shape.after))]
        for place, axis in places:
            sizes.setdefault(axis.alone or "", []).append(value.shape[place])
    made = {name for output in op.outputs if output is not None for name in output.names}
    for name in sizes.keys() - made - {""}:
        yield from sizes[name][1:]


def tolerance(dtype: torch.dtype, count: int) -> float:
    """The rounding difference allowed between two ways to compute a value from sums of `count`
    terms, relative to its magnitude.
    """
    return ULPS * math.sqrt(max(count, 1)) * torch.finfo(dtype).eps


def rounding(result: Any, *sides: Iterable[Any]) -> torch.dtype:
    """The type by whose last place a difference is judged: the coarsest that both sides round to on
    the way to a result, so that neither a dropped cast nor a new one passes for rounding.
    """
    coarse = [max(map(_unit, side), default=_unit(result)) for side in sides]
    return max(_unit(result), min(coarse))[1]


def _unit(value: Any) -> tuple[float, torch.dtype]:
    """The last place of a floating type, or of a tensor's, and the type."""
    dtype = value.dtype if isinstance(value, Tensor) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return 0.0, torch.float64
    return torch.finfo(dtype).eps, dtype
