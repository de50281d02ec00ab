"""Every numeric function a rule may call, by the name it has in rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import (
    adaptive,
    channels,
    equalization,
    importance,
    lowrank,
    mobilenet,
    observers,
    quantization,
    separable,
    sparsity,
    tensors,
    training,
)

MODULES = (
    tensors,
    channels,
    importance,
    separable,
    lowrank,
    mobilenet,
    sparsity,
    training,
    observers,
    quantization,
    equalization,
    adaptive,
)

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__.rstrip("_"): function for module in MODULES for function in module.FUNCTIONS
}
"""Small modules each export a tuple `FUNCTIONS`; a new module is added to `MODULES`."""
