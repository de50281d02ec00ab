"""The model while it is trained: weights of its own, and what rules say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..graph.exchange import exchange, like, own_layers
from ..graph.snapshot import finish, snapshot
from ..graph.ties import copies_of_views, storage_key
from ..rules.constraint import Constrained, Constraint, constraints_at, renew
from ..rules.state import State

Paths = tuple[str, ...]


class Learner(nn.Module):
    """A graph whose parameters an optimiser moves. Where a weight is constrained, its parameter
    holds the numbers that move, and the graph computes with what the constraints make of them.
    """

    def __init__(self, graph: fx.GraphModule, kept: Mapping[Paths, Sequence[Constrained]]) -> None:
        super().__init__()
        self.graph = graph
        self._kept = dict(kept)
        self.frozen: tuple[nn.Module, ...] = ()
        self.moved: dict[str, Tensor] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the graph gives."""
        if not self._kept:
            return self.graph(*args, **kwargs)
        return functional_call(self.graph, self.weights(), args, kwargs)

    def weights(self) -> dict[str, Tensor]:
        """What the graph computes with in place of its constrained parameters, by every path."""
        found = {}
        for paths, kept in self._kept.items():
            value = self.graph.get_parameter(paths[0])
            for one in kept:
                value = one(value, training=self.training)
            found |= dict.fromkeys(paths, value)
        return found

    def train(self, mode: bool = True) -> Learner:
        """In training mode, batch norms learn from batches unless they are frozen."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @torch.no_grad()
    def settle(self) -> None:
        """Parameters become what the graph computes with. Numbers behind them that began as others
        are remembered, for a training that goes on.
        """
        self.eval()
        for paths, kept in self._kept.items():
            if any(one.constraint.start is not None for one in kept):
                self.moved[paths[0]] = self.graph.get_parameter(paths[0]).detach().clone()
        for path, value in self.weights().items():
            self.graph.get_parameter(path).copy_(value)

    @property
    def is_free(self) -> bool:
        return not self._kept


def with_own_weights(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph with weights of its own, tied where they are; what lies in one memory
    lies in one memory again. Training writes to them, and rewriting shares tensors. Layers are its
    own, too: a dropout that trains is still one that does nothing in the graph that it came from.
    """
    finish(module)
    copied, views = snapshot(module), copies_of_views(module)
    own_layers(copied)
    paths: dict[int, list[str]] = {}
    held: dict[int, Tensor] = {}
    for path, tensor in _named(module):
        paths.setdefault(id(tensor), []).append(path)
        held[id(tensor)] = tensor
    for key, tensor in held.items():
        exchange(copied, paths[key], views[key] if key in views else like(tensor, tensor))
    finish(copied)
    return copied


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def begin(state: State, graph: fx.GraphModule) -> dict[Paths, tuple[Constrained, ...]]:
    """What rules say of the weights of `graph`, a copy of the state's, from where they are now.
    One memory is constrained once, whoever reads it; constraints that no longer hold are left out
    (`end_broken` tells them).
    """
    found: dict[Paths, dict[Constraint, None]] = {}
    for paths, constraint, _ in _said(state, graph):
        found.setdefault(paths, {})[constraint] = None
    return {paths: _begun(graph, paths, constraints) for paths, constraints in found.items()}


def _begun(
    graph: fx.GraphModule, paths: Paths, constraints: Mapping[Constraint, None]
) -> tuple[Constrained, ...]:
    weight = graph.get_parameter(paths[0])
    found = tuple(one.begin(weight) for one in constraints if one.holds_of(weight))
    for one in found:
        start = one.constraint.numbers(weight)
        if start is not weight:
            weight.data.copy_(start)
    return found


def end_broken(state: State) -> Iterator[tuple[str, Constraint]]:
    """The constraints that hold no more: something else has changed their weights since. Nothing is
    said of these weights from now on.
    """
    broken = [(p, c) for p, c, weight in _said(state, state.module) if not c.holds_of(weight)]
    yield from ((paths[0], constraint) for paths, constraint in broken)
    if broken:
        _rewrite(state, lambda one, weight: one if one.holds_of(weight) else None)


def _rewrite(state: State, of: Callable[[Constraint, Tensor], Constraint | None]) -> None:
    """Each constraint of the state's graph becomes another one, or none."""
    for node in state.module.graph.nodes:
        call = state.view.call(node) if constraints_at(node) else None
        for name, constraints in (constraints_at(node) if call is not None else {}).items():
            path = call.params.get(name)  # type: ignore[union-attr]
            if path is not None:
                weight = state.module.get_parameter(path)
                found = (of(one, weight) for one in constraints)
                renew(node, name, [one for one in found if one is not None])


def _said(state: State, graph: fx.GraphModule) -> Iterator[tuple[Paths, Constraint, Tensor]]:
    """Every constraint of the state's graph once, with all paths of its weight in `graph`."""
    tied: dict[Any, list[str]] = {}
    parameters = dict(graph.named_parameters(remove_duplicate=False))
    for path, tensor in parameters.items():
        tied.setdefault(storage_key(tensor), []).append(path)
    seen: set[tuple[str, str, str]] = set()
    for node in state.module.graph.nodes:
        call = state.view.call(node) if constraints_at(node) else None
        for name, constraints in (constraints_at(node) if call is not None else {}).items():
            weight = parameters.get(call.params.get(name) or "")  # type: ignore[union-attr]
            if weight is None:
                continue
            paths = tuple(tied[storage_key(weight)])
            for one in constraints:
                key = (paths[0], one.rule, one.path)
                if key not in seen:
                    seen.add(key)
                    yield paths, one, weight


def go_on_from(state: State, moved: Mapping[str, Tensor]) -> None:
    """What rules say of weights is said of the trained ones. Constraints with numbers behind their
    weight begin from these next time. moved: these, by path.
    """
    numbers = {id(state.module.get_parameter(path)): held for path, held in moved.items()}

    def of(one: Constraint, weight: Tensor) -> Constraint:
        start = one.start if one.start is None else numbers.get(id(weight), one.start)
        return replace(one, start=start, made=weight.detach())

    _rewrite(state, of)
