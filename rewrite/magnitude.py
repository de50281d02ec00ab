"""How large the sums inside a computation are: the scale against which rounding errors are judged.

For y = W x the rounding error is bounded by gamma_n (|W| |x|), not by a multiple of |y|, which may
be small through cancellation (Higham, Accuracy and Stability, section 3.5). Running the same ops on
absolute values gives |W| |x|. The factor n of the worst case, and sqrt(n) of the probabilistic one
(Higham and Mary, 2019), are left out on purpose: probes have random signs, so that partial sums
grow like sqrt(n) while |W| |x| grows like n. The bound that remains is a few units in the last
place of |W| |x|; a weight that was rounded to half precision on the way exceeds it for sums of up
to 10^5 terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ULPS = 16.0
"""Units in the last place of the magnitude that both sides together may differ by."""

_SUMS = frozenset({"mul", "div", "matmul", "bmm", "baddbmm", "cat", "stack"})


def magnitude(
    name: str,
    linear: bool,
    run: Any,
    inputs: Mapping[str, Any],
    params: Mapping[str, Any],
    value: Any,
) -> Any:
    """The scale of one op's result, from the scales of its inputs. `run(inputs, params)` computes
    the op.
    """
    if name == "batch_norm":
        return run(inputs, _batch_norm(params))
    if name in ("add", "sub"):
        return _sum(run, inputs)
    if linear or name in _SUMS:
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
    widest = torch.where(result.isfinite(), result.abs(), 0.0).maximum(value.abs().to(result.dtype))
    same = next((scale for scale in scales if scale.shape == result.shape), None)
    if same is not None:
        return torch.maximum(widest, same.to(widest.dtype))
    return torch.full_like(widest, float(widest.max())) if widest.numel() else widest


def _sum(run: Any, inputs: Mapping[str, Any]) -> Any:
    """|x| + |y|: with magnitudes alone a difference would give | |x| - |y| |."""
    first, second = inputs
    negated = {
        first: inputs[first],
        second: -inputs[second] if not _is_bool(inputs[second]) else inputs[second],
    }
    return torch.maximum(absolute(run(inputs, {})), absolute(run(negated, {})))


def _is_bool(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bool


def absolute(value: Any) -> Any:
    """The magnitude of a number, a floating tensor, or each of several, in float64; anything else
    as it is.
    """
    if isinstance(value, (tuple, list)):
        return tuple(map(absolute, value))
    if isinstance(value, Tensor):
        return value.abs().double() if value.is_floating_point() else value
    return abs(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _batch_norm(params: Mapping[str, Any]) -> dict[str, Any]:
    """(|x| + |mean|) |g| / sqrt(var + eps) + |b|."""
    out = {key: absolute(p) for key, p in params.items()}
    mean = out.get("running_mean")
    return {**out, "running_mean": None if mean is None else -mean}


def tolerance(dtype: torch.dtype) -> float:
    """The rounding difference allowed between two ways to compute a value, relative to its
    magnitude.
    """
    return ULPS * torch.finfo(dtype).eps
