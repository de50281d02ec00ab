"""What a trace writes down beside its graph: values that it took from the example."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True, slots=True)
class Specialised:
    """A value the capture took from the example: why, at which node, on which line of the model,
    and the value.
    """

    why: str
    node: str
    source: str
    value: object
    site: str = ""


@dataclass(frozen=True, slots=True)
class CaptureGuard:
    """A specialisation that can be computed again: `node` must give `value`."""

    node: fx.Node
    about: Specialised
