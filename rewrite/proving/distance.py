"""Where a model and its rewritten form first give different numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...grammar.diagnostics import LissomError
from ..apply.engine import VerifiedRewrite, anchor, apply, ready_at
from ..graph.snapshot import finish, snapshot
from ..measure.compare import outputs
from .models.grown import Grown
from .subject import Subject
from .trial import state_of

ROUNDING = 64
"""Units in the last place of an output's largest number that count as rounding."""


def first_difference(subject: Subject, grown: Grown) -> str:
    """Applies the rule unchecked wherever it was planted, and names the first number of the outputs
    that differs beyond rounding, with its value on both sides.
    """
    state = state_of(subject, grown)
    state.verify = False
    before = snapshot(state.module)
    try:
        for planted in grown.planted:
            start = anchor(state, grown.rule)
            found = ready_at(state, grown.rule, planted.nodes[start.index], start)
            if isinstance(found, VerifiedRewrite):
                apply(state, "unchecked", found, 0.0)
        finish(state.module)
        pairs = zip(outputs(before, grown.inputs), outputs(state.module, grown.inputs), strict=True)
    except (LissomError, RuntimeError, ValueError, IndexError) as error:
        return f"the rewritten model cannot run: {str(error).splitlines()[0]}"
    said = (f"output {n}{_apart(a, b)}" for n, (a, b) in enumerate(pairs) if _apart(a, b))
    return next(said, "no output differs beyond rounding")


def _apart(before: Any, after: Any) -> str:
    """What differs between two results; "" where nothing does."""
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return "" if before == after else f": {before!r} before, {after!r} after"
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        return f": {_spec(before)} before, {_spec(after)} after"
    places = _differs(before, after).nonzero()
    if not len(places):
        return ""
    at = tuple(int(i) for i in places[0])
    return f" at {list(at)}: {before[at].item()!r} before, {after[at].item()!r} after"


def _differs(before: Tensor, after: Tensor) -> Tensor:
    if not before.is_floating_point():
        return before != after
    left, right = before.double(), after.double()
    same = (left == right) | (left.isnan() & right.isnan())
    size = left[left.isfinite()].abs().max() if left.isfinite().any() else torch.zeros(())
    rounding = (left - right).abs() <= ROUNDING * torch.finfo(before.dtype).eps * size
    return ~(same | rounding)


def _spec(value: Tensor) -> str:
    return f"{value.dtype} {list(value.shape)}"
