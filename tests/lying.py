"""Kernels that compute something else than their op means: in one precision, where a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Where = Callable[[tuple[Any, ...], Tensor], bool]


class Lying(TorchDispatchMode):
    """While it is active the kernel of one op in one precision gives its channels in another order.

    where: the calls at which it does, by their arguments and the right result; all if not given.
    changing: it does so in every other run only.
    """

    def __init__(
        self, op: str, dtype: torch.dtype, where: Where | None = None, *, changing: bool = False
    ) -> None:
        super().__init__()
        self.op, self.dtype, self.where, self.changing = op, dtype, where, changing
        self.lies = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        right = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ != self.op or right.dtype != self.dtype:
            return right
        if self.where is not None and not self.where(args, right):
            return right
        self.lies += 1
        return right if self.changing and self.lies % 2 else right.roll(1, 1)
