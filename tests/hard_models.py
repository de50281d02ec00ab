"""Models of the hard cases: small layers around a function, after rules ran on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .support import Driven, Fn, library, random_norms, run

X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
EXACT = library("tidy", "fold", "merge")


def compiled(function: Callable[..., Any], x: Any = X, rules: str = EXACT, **parts: Any) -> Driven:
    torch.manual_seed(0)
    return run(random_norms(Fn(function, **parts)), x, rules).check()


def conv(*args: Any, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(*(args or (8, 8, 3)), **{"padding": 1, **more})


def norm(width: int = 8) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)
