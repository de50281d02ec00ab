"""What rounding alone does to a model's outputs, found by running it with rounding errors put in.

Monte Carlo arithmetic (Parker, Pierce and Eggert 2000, section 3, "precision bounding"): every
number that an op reads is off by one unit in the last place, up or down at random, in each place
where it is read. So a difference of two equal numbers is off by what their own rounding would
leave, though subtracting them is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph.runs import interpret, run_model
from ..graph.values import leaves
from ..graph.writes import writes
from ..torch_internals import tree_map

RUNS = 8
"""How often a model is run with errors put in."""


def disturbed(model: nn.Module, args: tuple[Any, ...]) -> Iterator[list[Any]]:
    """The leaves of what the model returns, in RUNS runs with other errors. The model stays as it
    is; one that no graph is known of, or that writes to its values, gets errors in weights and
    inputs alone.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(RUNS):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for tensor in (*moved.parameters(), *moved.buffers()):
                tensor.copy_(nudged(tensor, generator))
            yield [leaf for _, leaf in leaves(_run(moved, args, generator))]


def _run(model: nn.Module, args: tuple[Any, ...], generator: torch.Generator) -> Any:
    if isinstance(model, fx.GraphModule) and not any(writes(n, model) for n in model.graph.nodes):
        return interpret(_Rounder(model, generator), args)
    return run_model(model, tree_map(lambda value: nudged(value, generator), args))


class _Rounder(fx.Interpreter):
    """Runs a graph whose ops all read numbers that are off by a unit in the last place."""

    def __init__(self, module: fx.GraphModule, generator: torch.Generator) -> None:
        super().__init__(module)
        self.generator = generator

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        read = super().fetch_args_kwargs_from_env(n)
        if n.op == "output":
            return read
        return tree_map(lambda value: nudged(value, self.generator), read)


def nudged(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
    return value + value * signs * torch.finfo(value.dtype).eps
