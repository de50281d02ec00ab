"""Which op of a model gives other numbers when it runs again on the same ones."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ..graph.runs import copied
from ..graph.source_lines import line_above
from ..torch_internals import TorchDispatchMode, tree_map
from .processor import processor_name
from .twins import call_text, is_alike


class Unsteady(TorchDispatchMode):
    """While it is active every op runs three times. `kernel` names the first whose copies disagree
    though it draws no random numbers, `random` the first that draws some; each with its line of the
    model, empty where there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernel = self.random = self.where = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given, name = (args, kwargs or {}), func.overloadpacket.__name__
        if self.kernel or func.is_view or "empty" in name:
            return func(*args, **(kwargs or {}))
        # Copies are compared with each other: the memory of the original may lie otherwise.
        copies = [tree_map(_own, given) for _ in range(2)]
        state = torch.get_rng_state()
        value = func(*args, **(kwargs or {}))
        if not torch.equal(state, torch.get_rng_state()):
            self.random = self.random or f"`{name}` {_line()}".strip()
            return value
        one, two = (func(*own, **named) for own, named in copies)
        if not is_alike(one, two):
            self.kernel, self.where = call_text(func, given), _line()
        return value


def _own(value: Any) -> Any:
    return copied(value) if isinstance(value, Tensor) else value


def _line() -> str:
    found = line_above(sys._getframe(2), None)
    return f"({found})" if found else ""


def told(seen: Unsteady) -> tuple[str, str]:
    """What makes a model unsteady, and what to do; ("", "") where no op does."""
    if seen.kernel:
        kernel = f"the kernel of {seen.kernel} gives other numbers each time {seen.where}".strip()
        return f"{kernel} on this CPU ({processor_name()})", _OTHER_KERNELS
    drawn = f"{seen.random} draws random numbers" if seen.random else ""
    return drawn, ""


_OTHER_KERNELS = (
    "capture the model in float32, or let torch choose other kernels: "
    "torch.use_deterministic_algorithms(True), torch.backends.mkldnn.enabled = False, or the "
    "environment's ONEDNN_MAX_CPU_ISA"
)
