"""Observers: what watches values of the model while calibration data runs through it.

An observer hangs at a node under a name. It sees each batch once, keeps a summary of its own, and
gives what rules read when all is seen; what observers compute stands in `passes/observers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from torch import Tensor, fx

from ..graph.runs import Watcher, interpret

WATCHED, WATCHED_AS = "watched", "watched_as"
"""The keys of `node.meta` under which what hangs at a node lies, name to `Watched`, and the number
that a watched value has: names of nodes that went may come again.
"""

_numbers = count()


class Summary(Protocol):
    """What one observer keeps of the batches that it has seen."""

    def update(self, value: Tensor) -> None:
        """Sees a value `[...]` of one batch, which it must neither keep nor change."""

    def result(self) -> Any:
        """What rules read; None where there was no number."""


class Observer(Protocol):
    """Which summary is made. Observers that are equal share one."""

    def begin(self) -> Summary: ...


@dataclass(frozen=True, slots=True)
class Watched:
    """An observer under a name at some node. on: the number of the value that it watches. seen:
    what it found; None before calibration.
    """

    observer: Observer
    on: int
    seen: Any = None


def key(name: str, of_op: bool) -> str:
    """Where something hangs: an op and the value that it gives are one node, and have names of
    their own.
    """
    return f"{name} of the op" if of_op else name


def watched_at(node: fx.Node) -> Mapping[str, Watched]:
    """What hangs at a node, by name."""
    return node.meta.get(WATCHED, {})


def hang(node: fx.Node, more: Mapping[str, Watched]) -> None:
    """Hangs observers at a node. Copies of a graph share what lies in `meta`: it is replaced."""
    node.meta[WATCHED] = {**watched_at(node), **more}


def number_of(value: fx.Node) -> int:
    """The number of a value that is watched; it gets one when it is asked for."""
    return value.meta.setdefault(WATCHED_AS, next(_numbers))


def hand_on(old: fx.Node, new: fx.Node) -> None:
    """What was seen of a value holds for the one that takes its place, of the same type."""
    number, there = old.meta.get(WATCHED_AS), WATCHED_AS in new.meta
    same = getattr(old.meta.get("val"), "dtype", 0) == getattr(new.meta.get("val"), "dtype", 1)
    if number is not None and same and not there:
        new.meta[WATCHED_AS] = number
        hang(new, {name: one for name, one in watched_at(old).items() if one.on == number})


def forget_seen(graph: fx.Graph) -> None:
    """Weights are others now: what observers saw before no longer counts."""
    for node in graph.nodes:
        if watched_at(node):
            hang(node, {n: replace(one, seen=None) for n, one in watched_at(node).items()})


def calibrate(
    module: fx.GraphModule,
    batches: Iterable[tuple[Any, ...]],
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Runs each batch of inputs once and gives all observers of the graph what they saw. Memory is
    that of one run: nothing of a batch is kept. Returns how many summaries were made.
    """
    summaries = _summaries(module.graph)
    by_value: dict[int, list[Summary]] = {}
    for (on, _), summary in summaries.items():
        by_value.setdefault(on, []).append(summary)

    def see(node: fx.Node, value: Any) -> None:
        for summary in by_value.get(node.meta.get(WATCHED_AS, -1), ()):
            if isinstance(value, Tensor) and value.numel():
                summary.update(value.detach())

    for number, args in enumerate(batches):
        progress(number)
        interpret(Watcher(module, see), args, "the data")
    _tell(module.graph, {key: summary.result() for key, summary in summaries.items()})
    return len(summaries)


_Key = tuple[int, Observer]


def _summaries(graph: fx.Graph) -> dict[_Key, Summary]:
    """One for each value and observer, however many names it has."""
    alive = {node.meta.get(WATCHED_AS) for node in graph.nodes}
    wanted: Sequence[Watched] = [w for node in graph.nodes for w in watched_at(node).values()]
    keys = dict.fromkeys((one.on, one.observer) for one in wanted if one.on in alive)
    return {(on, observer): observer.begin() for on, observer in keys}


def _tell(graph: fx.Graph, found: Mapping[_Key, Any]) -> None:
    for node in graph.nodes:
        named = watched_at(node).items()
        told = {n: replace(w, seen=found.get((w.on, w.observer))) for n, w in named}
        if told:
            hang(node, told)
