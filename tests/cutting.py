"""Cutting small models: random halves of classes, compared with the masked model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from lissom.rewrite.capture.capture import capture
from lissom.rewrite.channels.analyse import analyse
from lissom.rewrite.channels.classes import DimClass, classes
from lissom.rewrite.channels.cut import cut
from lissom.rewrite.channels.flow import Flow
from lissom.rewrite.channels.masked import masked
from lissom.rewrite.channels.update_after_cut import cut_and_carry
from lissom.rewrite.graph.index import GraphView
from lissom.rewrite.measure.compare import distance

Args = tuple[Any, ...]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, in float64, with other numbers for everything, statistics too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return model.double().eval()


def flow_of(model: nn.Module, *args: Any) -> Flow:
    captured = capture(model, args, prove=False)
    return analyse(GraphView(captured.module))


def free(flow: Flow) -> list[DimClass]:
    """The classes that can be cut."""
    return [dim for dim in classes(flow) if not dim.blocks]


def named(flow: Flow) -> dict[str, DimClass]:
    return {dim.name: dim for dim in free(flow)}


def halves(dims: list[DimClass], seed: int = 0) -> list[int]:
    """A random half of the leaves of each class."""
    generator = torch.Generator().manual_seed(seed)
    orders = [(dim, torch.randperm(dim.size, generator=generator).tolist()) for dim in dims]
    return [dim.leaves[i] for dim, order in orders for i in order[: dim.size // 2]]


def results(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def apart(flow: Flow, module: nn.Module, removed: list[int], args: Args) -> float:
    """The largest relative difference between the masked model and the cut one."""
    with torch.no_grad():
        wanted = results(masked(flow, removed)(*args))
        found = results(module(*args))
    assert [tuple(a.shape) for a in wanted] == [tuple(b.shape) for b in found]
    return max(distance(a, b) for a, b in zip(wanted, found, strict=True))


def moved(flow: Flow, module: nn.Module, args: Args) -> float:
    """How far the cut moves the outputs of the model: 0 would show nothing."""
    with torch.no_grad():
        pairs = zip(results(flow.view.root(*args)), results(module(*args)), strict=True)
    return max(distance(a, b) for a, b in pairs)


def require_exact(model: nn.Module, *args: Any, seeds: int = 3) -> Flow:
    """Random halves of all classes at once: the cut model is the masked one, and not the old."""
    flow = flow_of(model, *args)
    before = [parameter.detach().clone() for parameter in flow.view.root.parameters()]
    for seed in range(seeds):
        removed = halves(free(flow), seed)
        assert removed
        module = cut(flow, removed)
        assert apart(flow, module, removed, args) < 1e-12
        assert moved(flow, module, args) > 1e-6
        assert size(module) < size(flow.view.root)
        again(flow, removed, module, args)
    assert all(map(torch.equal, before, flow.view.root.parameters()))
    return flow


def again(flow: Flow, removed: list[int], module: fx.GraphModule, args: Args) -> None:
    """What is carried over the cut is what an analysis of the result finds, and can be cut."""
    carried = cut_and_carry(flow, removed)
    assert shapes(carried.view.root) == shapes(module)
    fresh = analyse(GraphView(module))
    assert sorted(d.size for d in free(carried)) == sorted(d.size for d in free(fresh))
    for known in (carried, fresh):
        more = halves(free(known), 7)
        if more:
            assert apart(known, cut(known, more), more, args) < 1e-12


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(module: fx.GraphModule) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
