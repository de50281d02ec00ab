"""Exits as they stand in a graph: calls of `runtime.exit_at`, which hand on a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from ..runtime.exits import exit_at

LIMIT = "limit"
_NAMES = ("value", "logits", "score", "test", LIMIT)
"""The parameters of `runtime.exit_at`, in order."""


@dataclass(frozen=True, slots=True)
class ExitNode:
    """One exit: the node, what it hands on, what a sample leaves with, how sure of it, and when."""

    node: fx.Node
    value: fx.Node
    logits: fx.Node
    score: fx.Node
    test: str
    limit: float


def exits_of(graph: fx.Graph) -> list[ExitNode]:
    """The exits of a network, in their order."""
    return [_read(node) for node in graph.nodes if node.target is exit_at]


def _read(node: fx.Node) -> ExitNode:
    given: dict[str, Any] = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
    return ExitNode(node, *(given[name] for name in _NAMES))


def outputs_of(graph: fx.Graph) -> list[fx.Node]:
    """The values that a model returns, however they are nested."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    return list(output.all_input_nodes)


def set_limit(node: fx.Node, limit: float) -> None:
    """When samples leave there."""
    node.update_kwarg(LIMIT, limit)
