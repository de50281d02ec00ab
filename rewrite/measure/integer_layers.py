"""What integer layers of a model run: a kernel of the processor, or plain torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..graph.runs import run_model
from ..runtime.kernels import largest_sum
from ..runtime.layers import Int8Layer
from .processor import integer_instructions

PLAIN = "plain torch:"
"""How `Int8Layer.ran` begins where no kernel runs; the reason follows."""


def integer_layers(model: nn.Module) -> dict[str, Int8Layer]:
    """By path, each once."""
    return {path: part for path, part in model.named_modules() if isinstance(part, Int8Layer)}


def largest_sums(model: nn.Module) -> dict[str, int]:
    """What the sums of each integer layer reach at most, of those that have weights."""
    layers = integer_layers(model).items()
    return {path: largest_sum(layer.weight) for path, layer in layers if layer.weight.numel()}


def runs_of(model: nn.Module, args: tuple[Any, ...]) -> dict[str, tuple[str, int]]:
    """What each integer layer runs on these inputs, "plain torch: " and why or the kernel, and how
    often.
    """
    layers, calls = integer_layers(model), Counter[str]()
    counting = [
        layer.register_forward_hook(lambda *_, path=path: calls.update([path]))
        for path, layer in layers.items()
    ]
    try:
        run_model(model, args)
    finally:
        for hook in counting:
            hook.remove()
    return {path: (layer.ran or "not run", calls[path]) for path, layer in layers.items()}


def kernel_of(layer: Int8Layer) -> str:
    """What it ran last: the kernel and its instructions, or "plain torch: " and why."""
    ran = layer.ran or "not run"
    return f"{ran}, {integer_instructions()}" if ran.startswith("oneDNN") else ran


def plain_layers(runs: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Those that no kernel runs, with the reason."""
    found = {path: ran for path, (ran, _) in runs.items() if ran.startswith(PLAIN)}
    return {path: ran.removeprefix(PLAIN).strip() for path, ran in found.items()}
