"""Dimension classes: features that stand in the same axes of the same parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .atoms import NONE, Block
from .flow import Flow, Key
from .tracks import axes_of

Place = tuple[str, int]
"""A parameter, by its path, and one of its axes."""


_Role = tuple[Place, int]
"""A place, and which factor of a product the feature is there: heads are the first, their widths
the second.
"""


@dataclass(frozen=True, slots=True)
class DimClass:
    """One dimension of a model, wherever it appears.

    leaves: its features, in the order of the first axis that they appear in. places: the axes of
    parameters that carry it. blocks: why it cannot be cut; none if it can.
    """

    name: str
    leaves: tuple[int, ...]
    places: tuple[Place, ...]
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        return len(self.leaves)


def classes(flow: Flow) -> list[DimClass]:
    """All dimension classes, in the order of the graph."""
    groups: dict[tuple[_Role, ...], list[int]] = {}
    blocked: dict[tuple[_Role, ...], list[int]] = {}
    for leaf, roles in _roles(flow).items():
        side = groups if flow.atoms.blocked(leaf) is None else blocked
        side.setdefault(tuple(roles), []).append(leaf)
    return [
        _class(flow, roles, leaves)
        for side in (groups, blocked)
        for roles, leaves in side.items()
        if len(leaves) > 1
    ]


def _class(flow: Flow, roles: tuple[_Role, ...], leaves: list[int]) -> DimClass:
    places = tuple(dict.fromkeys(place for place, _ in roles))
    blocks = dict.fromkeys(flow.atoms.blocked(leaf) for leaf in leaves)
    name = places[0][0].rpartition(".")[0] or places[0][0]
    return DimClass(name, tuple(leaves), places, tuple(b for b in blocks if b is not None))


def _roles(flow: Flow) -> dict[int, dict[_Role, None]]:
    """Leaf -> the axes of parameters that carry it, in the order of the graph."""
    paths: dict[Key, str] = {}
    for path, key in flow.paths.items():
        paths.setdefault(key, path)
    found: dict[int, dict[_Role, None]] = {}
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
