"""Whether a training kept the form of the weights: asked of the weights alone, whatever the learner
did to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.digest import weights_at
from ..graph.ties import storage_key
from ..journal import Verdict, VerdictKind
from ..rules.constraint import ROUNDINGS, Constrained, Constraint
from .learner import Paths

BESIDE = "models beside the one that is trained stay as they were"
KEPT = "what rules said of trained weights still holds"
TIED = "tied weights are still one"

Kept = Mapping[Paths, Sequence[Constrained]]


def structure_kept(
    graph: nn.Module, kept: Kept, tied: Mapping[str, Sequence[str]]
) -> tuple[Verdict, ...]:
    """A verdict on all constraints, as they were when training began, and one on all ties; none
    where there are none.
    """
    return (*_constraints(list(still_holds(graph, kept))), *_ties(graph, tied))


def still_holds(graph: nn.Module, kept: Kept) -> Iterator[tuple[str, Constraint, float]]:
    """How far each constraint, as it was when training began, moves its weight once more, in units
    in the last place, when the weights have settled; by every path at which the weight is read.
    """
    for paths, constraints in kept.items():
        for path, one in product(paths, constraints):
            yield path, one.constraint, one.apart(graph.get_parameter(path).detach())


def no_longer_tied(graph: nn.Module, kept: Mapping[str, Sequence[str]]) -> list[str]:
    """The paths of weights that were one memory (`ties`) and are several now."""
    parameters = dict(graph.named_parameters(remove_duplicate=False))
    apart = (
        paths for paths in kept.values() if len({storage_key(parameters[p]) for p in paths}) > 1
    )
    return [path for paths in apart for path in paths]


def ties(graph: nn.Module) -> dict[str, tuple[str, ...]]:
    """Paths of parameters that share one memory, by the first of them."""
    found: dict[Any, list[str]] = {}
    for path, tensor in graph.named_parameters(remove_duplicate=False):
        found.setdefault(storage_key(tensor), []).append(path)
    return {paths[0]: tuple(paths) for paths in found.values() if len(paths) > 1}


def _constraints(found: Sequence[tuple[str, Constraint, float]]) -> Iterator[Verdict]:
    if found:
        path, constraint, units = max(found, key=lambda one: one[2])
        worst = f"worst is `{path}` ({constraint.rule}), units in the last place"
        said, holds = f"{len(found)} weights; {worst}", units <= ROUNDINGS
        kind = VerdictKind.TRAINED
        yield Verdict(KEPT, "tested", holds, len(found), units, ROUNDINGS, said, kind=kind)


def _ties(graph: nn.Module, before: Mapping[str, Sequence[str]]) -> Iterator[Verdict]:
    if before:
        apart = no_longer_tied(graph, before)
        said = f"`{'`, `'.join(apart[:2])}` no longer are" if apart else ", ".join(before)
        kind = VerdictKind.TRAINED
        yield Verdict(TIED, "proved", not apart, len(before), detail=said, kind=kind)


@dataclass(frozen=True)
class Beside:
    """Graphs that a training reads and must not change: teachers, the model that it began from. A
    write raises a counter, but not where a batch norm writes its statistics: buffers are kept.
    """

    graphs: tuple[nn.Module, ...]
    counted: tuple[Mapping[str, tuple[int, int]], ...]
    buffers: tuple[Mapping[str, Tensor], ...]

    @classmethod
    def of(cls, graphs: Sequence[nn.Module]) -> Beside:
        kept = ({path: b.clone() for path, b in graph.named_buffers()} for graph in graphs)
        return cls(tuple(graphs), tuple(map(weights_at, graphs)), tuple(kept))

    def changed(self) -> Iterator[Verdict]:
        """A verdict that does not hold, where one of them is no longer what it was."""
        paths = [path for at, graph in enumerate(self.graphs) for path in self._changed(at, graph)]
        if paths:
            said, count = f"`{paths[0]}` was changed", len(self.graphs)
            kind = VerdictKind.UNTOUCHED
            yield Verdict(BESIDE, "proved", False, count, detail=said, kind=kind)

    def _changed(self, at: int, graph: nn.Module) -> Iterator[str]:
        now, before = weights_at(graph), self.counted[at]
        yield from (path for path in before if now.get(path) != before[path])
        for path, kept in self.buffers[at].items():
            if not torch.equal(graph.get_buffer(path).nan_to_num(), kept.nan_to_num()):
                yield path
