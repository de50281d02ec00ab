"""What is told of a training that ended, where it may be another one than was meant."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from .loop import Training

Remark = tuple[str, str]
"""A code and a text."""


def remarks(training: Training, graph: fx.GraphModule, watched: str, best: int) -> Iterator[Remark]:
    """graph: what was trained; watched: the metric that chose the epoch `best`."""
    name = training.settings.name
    if training.diverged:
        yield "F101", f"`{name}` stopped at {training.diverged}; epoch {best} is kept"
    lost = [e.number for e in training.history if math.isnan(e.metrics.get(watched, 0.0))]
    if lost:
        said = f"epoch{'s'[: len(lost) - 1]} {', '.join(map(str, lost))}"
        yield "F108", f"`{watched}` is no number after {said} of `{name}`, which cannot be best"
    if "batch" in training.settings.given and not training.data.divides:
        yield "F110", f"`batch` of `{name}` is not heard: its data comes in batches as they are"
    still = [node.name for node in graph.graph.nodes if _stays(node)]
    if still:
        places = f"`{'`, `'.join(still[:3])}`" + (" and more" if len(still) > 3 else "")
        yield "F109", f"{places}: as in eval mode while `{name}` trained, as it was captured"


def _stays(node: fx.Node) -> bool:
    """A function that was captured with `training = False`; layers follow the mode."""
    given = node.kwargs
    stays = node.op == "call_function" and given.get("training") is False
    return stays and bool(given.get("p", 1))
