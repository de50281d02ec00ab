"""Which features the axes of every value and parameter carry: what is known of one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from ..graph.index import GraphView
from ..graph.ties import storage_key
from ..ops.call import tensor_at
from ..ops.spec import TensorSpec
from .labels import Labels, Vectors, along, axes_of, couple, joined, keep_all, separated
from .units import KeepReason, Units

Key = tuple[Any, ...]
Place = tuple[str, int]
"""A parameter, by its path, and one of its axes."""


@dataclass(frozen=True, slots=True)
class Region:
    """Movements that do no more, together, than to choose positions along one axis: a channel
    shuffle. What is left of that axis can be chosen by one `index_select`.

    order: the position in `source` of each position of the last result. inside: the nodes between.
    """

    source: fx.Node
    axis: int
    order: Tensor
    inside: tuple[fx.Node, ...]


@dataclass(frozen=True, slots=True)
class SizedMove:
    """A movement that may lay features out in another way where other axes have other extents:
    what it makes of a track.
    """

    node: fx.Node
    track: Tensor
    parts: list[Tensor]


@dataclass
class Flow:
    """What is known of one graph.

    values: the tracks of each result of each node. params: those of each parameter, by its memory,
    so that tied ones are one. contracted: ops that sum over features. statistics: norms that are
    taken anew over the features that are left. recurrent: weights that lead from one step of time
    to the next, by op. sized: settings that are the size of a dimension. roles: whether an op
    "writes" along an axis of a parameter, "reads" along it, or lets features pass ("rides").
    regions: shuffles, by their last node. sized_moves: see `SizedMove`.
    """

    view: GraphView
    atoms: Units = field(default_factory=Units)
    values: dict[fx.Node, list[Labels]] = field(default_factory=dict)
    params: dict[Key, Labels] = field(default_factory=dict)
    paths: dict[str, Key] = field(default_factory=dict)
    contracted: dict[fx.Node, None] = field(default_factory=dict)
    statistics: dict[fx.Node, None] = field(default_factory=dict)
    recurrent: dict[fx.Node, list[str]] = field(default_factory=dict)
    sized: dict[fx.Node, dict[str, Vectors]] = field(default_factory=dict)
    roles: dict[Place, str] = field(default_factory=dict)
    regions: dict[fx.Node, Region] = field(default_factory=dict)
    sized_moves: list[SizedMove] = field(default_factory=list)

    def of(self, value: Any) -> Labels:
        """The tracks of what an op reads."""
        if not isinstance(value, fx.Node):
            return ()
        if value.op == "get_attr":
            return self.weight(str(value.target))
        return self.values[value][0]

    def spread(self, value: Any) -> bool:
        """Whether a feature of the value needs several of its axes to be told."""
        return any(len(axes_of(track)) > 1 for track in self.of(value))

    def set(self, node: fx.Node, *results: Labels) -> None:
        self.values[node] = list(results)

    def separate(self, value: Any) -> Labels:
        """The tracks of a value, one axis each: something other than a movement reads it."""
        if not isinstance(value, fx.Node):
            return ()
        why = KeepReason(value.name, "its features are spread over several axes")
        tracks = separated(self.atoms, self.of(value), why)
        if value.op != "get_attr":
            self.values[value][0] = tracks
        return tracks

    def weight(self, path: str) -> Labels:
        """The tracks of a parameter; features of its own along each axis, if it had none yet."""
        key = self.key(path)
        if key not in self.params:
            shape = tensor_at(self.view.root, path).shape
            fresh = [(self.atoms.fresh(n),) if n > 1 else () for n in shape]
            self.params[key] = joined(fresh)
        return self.params[key]

    def give(self, path: str, axes: Sequence[Vectors]) -> None:
        """What an op says of the axes of a parameter. Parts that other calls said something else
        of are coupled.
        """
        key = self.key(path)
        known = self.params.get(key)
        if known is None:
            self.params[key] = joined(axes)
            return
        for axis, vectors in enumerate(axes):
            why = KeepReason(path, "several calls read it, with features that do not fit together")
            if tensor_at(self.view.root, path).shape[axis] > 1:
                couple(self.atoms, along(known, axis), vectors, why)

    def key(self, path: str) -> Key:
        """The same for parameters that are one memory."""
        if path not in self.paths:
            self.paths[path] = key_of(tensor_at(self.view.root, path))
        return self.paths[path]

    def block_inputs(self, node: fx.Node, reason: str) -> None:
        """Every feature that reaches the node must stay."""
        why = KeepReason(node.name, reason, node.op == "output")
        for value in node.all_input_nodes:
            if value.op == "get_attr" and isinstance(value.meta.get("val"), TensorSpec):
                keep_all(self.atoms, self.weight(str(value.target)), why)
            for tracks in self.values[value]:
                keep_all(self.atoms, tracks, why)


def key_of(tensor: Tensor) -> Key:
    """The same for tensors that are one memory, read in one way."""
    return storage_key(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
