"""How large the sums inside a computation are: the scale against which rounding errors are judged.

For y = W x the rounding error is bounded by gamma_n (|W| |x|), not by a multiple of |y|, which may be small through
cancellation (Higham, Accuracy and Stability, section 3.5). Running the same ops on absolute values gives |W| |x|. The
factor n of the worst case, and sqrt(n) of the probabilistic one (Higham and Mary, 2019), are left out on purpose: probes
have random signs, so that partial sums grow like sqrt(n) while |W| |x| grows like n. The bound that remains is a few
units in the last place of |W| |x|; a weight that was rounded to half precision on the way exceeds it for sums of up to
10^5 terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ULPS = 16.0
"""Units in the last place of the magnitude that both sides together may differ by."""

_SUMS = frozenset({"add", "sub", "mul", "div", "matmul", "bmm", "baddbmm", "cat", "stack"})


def magnitude(name: str, linear: bool, run: Any, inputs: Mapping[str, Any], params: Mapping[str, Any], value: Any) -> Any:
    """The scale of one op's result, from the scales of its inputs. `run(inputs, params)` computes the op."""
    if name == "batch_norm":
        return run(inputs, _batch_norm(params))
    if linear or name in _SUMS:
        return run(inputs, {key: _absolute(p) for key, p in params.items()})
    scales = [scale for scale in inputs.values() if isinstance(scale, Tensor)]
    result = run(inputs, params)
    if not isinstance(result, Tensor) or not isinstance(value, Tensor) or not value.is_floating_point():
        return result
    widest = torch.maximum(result.abs(), value.abs())
    same = next((scale for scale in scales if scale.shape == result.shape), None)
    if same is not None:
        return torch.maximum(widest, same.to(widest.dtype))
    return torch.full_like(widest, float(widest.max())) if widest.numel() else widest


def _absolute(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def _batch_norm(params: Mapping[str, Any]) -> dict[str, Any]:
    """(|x| + |mean|) |g| / sqrt(var + eps) + |b|."""
    out = {key: _absolute(p) for key, p in params.items()}
    mean = out.get("running_mean")
    return {**out, "running_mean": None if mean is None else -mean}


def tolerance(dtype: torch.dtype) -> float:
    """The rounding difference allowed between two ways to compute a value, relative to its magnitude."""
    return ULPS * torch.finfo(dtype).eps
