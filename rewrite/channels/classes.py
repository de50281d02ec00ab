"""Dimension classes: features that stand in the same axes of the same parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .atoms import NONE, Block
from .flow import Flow, Key, Place
from .tracks import axes_of

Role = tuple[Place, int]
"""A place, and which factor of a product the feature is there: heads are the first, their widths
the second.
"""


@dataclass(frozen=True, slots=True)
class DimClass:
    """One dimension of a model, wherever it appears.

    leaves: its features, in the order of the first axis that they appear in. roles: the axes of
    parameters that carry it, and which factor of the axis it is. blocks: why it cannot be cut; none
    if it can.
    """

    name: str
    leaves: tuple[int, ...]
    roles: tuple[Role, ...]
    blocks: tuple[Block, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """The axes of parameters that carry it."""
        return tuple(dict.fromkeys(place for place, _ in self.roles))

    @property
    def size(self) -> int:
        return len(self.leaves)


def classes(flow: Flow) -> list[DimClass]:
    """All dimension classes, in the order of the graph."""
    groups: dict[tuple[Role, ...], list[int]] = {}
    blocked: dict[tuple[Role, ...], list[int]] = {}
    for leaf, roles in _roles(flow).items():
        side = groups if flow.atoms.blocked(leaf) is None else blocked
        side.setdefault(tuple(roles), []).append(leaf)
    return [
        _class(flow, roles, leaves)
        for side in (groups, blocked)
        for roles, leaves in side.items()
        if len(leaves) > 1
    ]


def _class(flow: Flow, roles: tuple[Role, ...], leaves: list[int]) -> DimClass:
    blocks = dict.fromkeys(flow.atoms.blocked(leaf) for leaf in leaves)
    (path, _), _ = roles[0]
    name = path.rpartition(".")[0] or path
    return DimClass(name, tuple(leaves), roles, tuple(b for b in blocks if b is not None))


def _roles(flow: Flow) -> dict[int, dict[Role, None]]:
    """Leaf -> the axes of parameters that carry it, in the order of the graph."""
    paths: dict[Key, str] = {}
    for path, key in flow.paths.items():
        paths.setdefault(key, path)
    found: dict[int, dict[Role, None]] = {}
    for key, tracks in flow.params.items():
        for track in tracks:
            for axis in axes_of(track):
                for leaf, factor in _factors(flow, track):
                    found.setdefault(leaf, {})[(paths[key], axis), factor] = None
    return found


def _factors(flow: Flow, track: Tensor) -> Iterator[tuple[int, int]]:
    """Each leaf of a track, and which factor of the product it is."""
    for atom in dict.fromkeys(track.reshape(-1).tolist()):
        if atom != NONE:
            for factor, leaf in enumerate(flow.atoms.leaves(atom)):
                yield leaf, factor
