"""Questions about a tensor that a graph does not hold: neither numbers nor sizes."""

from __future__ import annotations

from ..ops.reported import ReportedCall

TYPE, ORDER, OFFSET, DEVICE, PINNED = "type", "order", "offset", "device", "pinned"
TOLD = "told"
"""Kinds of questions; answers of the last follow from how a call runs, not from its inputs."""

MODES = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled")
MODES += ("is_autocast_cpu_enabled", "get_autocast_dtype", "get_autocast_cpu_dtype")
"""Functions of torch that say how a call runs, and take no tensor."""

KINDS = dict.fromkeys(
    ("dtype", "is_floating_point", "is_complex", "is_signed", "element_size", "itemsize", "nbytes")
    + ("type", "result_type", "can_cast"),
    TYPE,
)
KINDS |= dict.fromkeys(("is_contiguous", "stride", "dim_order"), ORDER)
KINDS |= {"storage_offset": OFFSET, "is_pinned": PINNED}
# Not `device`: most models only make further tensors there.
KINDS |= dict.fromkeys(("is_cuda", "is_cpu", "is_mps", "is_xpu", "get_device"), DEVICE)
KINDS |= dict.fromkeys(
    ("requires_grad", "grad_fn", "grad", "is_leaf", "retains_grad", "is_inference", "_version")
    + ("data_ptr", "untyped_storage", "is_set_to", "is_shared"),
    TOLD,
)


def question(call: ReportedCall) -> str:
    """What a call without a tensor as its result asks, as torch names it; "" for what is no
    question of this kind.
    """
    name = call.args[1] if call.target is getattr else getattr(call.target, "__name__", call.target)
    return name if name in KINDS else ""


def is_own(name: str) -> bool:
    """Whether torch's own code asks this to choose among equal ways."""
    return name in MODES or KINDS[name] == TOLD
